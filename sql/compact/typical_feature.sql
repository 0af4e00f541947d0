-- A feature whose number of activations is the median of all features that fire: what a look-up usually asks for.
SELECT run_id, layer, feature
FROM (
    SELECT run_id, layer, feature, count(*) AS n_active
    FROM {table}
    GROUP BY ALL
)
ORDER BY n_active, run_id, layer, feature
LIMIT 1
OFFSET (SELECT count(*) // 2 FROM (SELECT DISTINCT run_id, layer, feature FROM {table}))
