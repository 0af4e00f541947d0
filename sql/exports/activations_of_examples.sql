-- Where in the contexts of its examples a feature is active, and how strongly, in a FLOAT's shortest digits.
WITH told AS (
    SELECT DISTINCT feature, token_id // context_length AS context_id
    FROM (
        SELECT i.feature, unnest(i.token_ids) AS token_id, r.context_length
        FROM activation_intervals AS i
        JOIN current_run AS r USING (run_id)
        WHERE i.layer = $layer AND i.feature IN (SELECT unnest($features))
    )
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
