-- What an energy transformer's own landscape does has one row each.
SELECT 'native_settings' AS "table", 'run_id, weights' AS columns, concat_ws(':', run_id, weights) AS key, count(*) AS n
FROM native_settings
GROUP BY run_id, weights
HAVING n > 1
UNION ALL
SELECT 'native_attractors' AS "table", 'run_id, weights, attractor' AS columns, concat_ws(':', run_id, weights, attractor) AS key, count(*) AS n
FROM native_attractors
GROUP BY run_id, weights, attractor
HAVING n > 1
UNION ALL
SELECT 'native_basins' AS "table", 'run_id, weights, token_id' AS columns, concat_ws(':', run_id, weights, token_id) AS key, count(*) AS n
FROM native_basins
GROUP BY run_id, weights, token_id
HAVING n > 1
UNION ALL
SELECT 'native_patches' AS "table", 'run_id, layer, feature, token_id, kind, direction' AS columns, concat_ws(':', run_id, layer, feature, token_id, kind, direction) AS key, count(*) AS n
FROM native_patches
GROUP BY run_id, layer, feature, token_id, kind, direction
HAVING n > 1
