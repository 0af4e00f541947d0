-- Contexts of the examples of some features, each with the smallest place that an example of it has among the
-- strongest ones of its feature; examples of intervals come behind all of these.
WITH told AS (
    SELECT unnest($layers) AS layer, unnest($features) AS feature
),
places AS (
    SELECT
        unnest(i.token_ids) AS token_id,
        generate_subscripts(i.token_ids, 1) + CASE WHEN i."interval" > 0 THEN $n ELSE 0 END AS place
    FROM activation_intervals AS i
    JOIN told USING (layer, feature)
    WHERE i.run_id = (SELECT run_id FROM current_run)
)
SELECT p.token_id // r.context_length AS context_id, min(p.place) AS place
FROM places AS p, current_run AS r
GROUP BY ALL
ORDER BY place, context_id
