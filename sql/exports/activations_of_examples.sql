-- Where in the contexts of its examples a feature is active, and how strongly, in a FLOAT's shortest digits.
WITH told AS (
    SELECT DISTINCT i.run_id, i.feature, unnest(list_distinct(list_transform(i.token_ids, lambda t: t // r.context_length))) AS context_id
    FROM activation_intervals AS i
    JOIN current_run AS r USING (run_id)
    WHERE i.layer = $layer AND i.feature IN (SELECT unnest($features))
)
SELECT
    a.feature,
    t.context_id,
    list((a.token_id % r.context_length)::INTEGER ORDER BY a.token_id) AS positions,
    list(CAST(CAST(a.activation AS VARCHAR) AS DOUBLE) ORDER BY a.token_id) AS activations
FROM activations AS a
JOIN current_run AS r USING (run_id)
JOIN told AS t ON t.feature = a.feature AND t.context_id = a.token_id // r.context_length
WHERE a.layer = $layer AND a.feature IN (SELECT unnest($features))
GROUP BY ALL
