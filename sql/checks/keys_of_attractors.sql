-- Attractors, basins, sweeps, descents and doses have one row each.
SELECT 'attractor_settings' AS "table", 'run_id, layer, dictionary' AS columns, concat_ws(':', run_id, layer, dictionary) AS key, count(*) AS n
FROM attractor_settings
GROUP BY run_id, layer, dictionary
HAVING n > 1
UNION ALL
SELECT 'attractor_sweeps' AS "table", 'run_id, layer, dictionary, beta' AS columns, concat_ws(':', run_id, layer, dictionary, beta) AS key, count(*) AS n
FROM attractor_sweeps
GROUP BY run_id, layer, dictionary, beta
HAVING n > 1
UNION ALL
SELECT 'attractors' AS "table", 'run_id, layer, attractor' AS columns, concat_ws(':', run_id, layer, attractor) AS key, count(*) AS n
FROM attractors
GROUP BY run_id, layer, attractor
HAVING n > 1
UNION ALL
SELECT 'basins' AS "table", 'run_id, layer, token_id' AS columns, concat_ws(':', run_id, layer, token_id) AS key, count(*) AS n
FROM basins
GROUP BY run_id, layer, token_id
HAVING n > 1
UNION ALL
SELECT 'attractor_descents' AS "table", 'run_id, layer, step' AS columns, concat_ws(':', run_id, layer, step) AS key, count(*) AS n
FROM attractor_descents
GROUP BY run_id, layer, step
HAVING n > 1
UNION ALL
SELECT 'critical_doses' AS "table", 'run_id, layer, feature, later_layer, token_id' AS columns, concat_ws(':', run_id, layer, feature, later_layer, token_id) AS key, count(*) AS n
FROM critical_doses
GROUP BY run_id, layer, feature, later_layer, token_id
HAVING n > 1
