-- Runs, models, SAEs and energies have one row each.
SELECT 'runs' AS "table", 'run_id' AS columns, run_id::VARCHAR AS key, count(*) AS n
FROM runs
GROUP BY run_id
HAVING n > 1
UNION ALL
SELECT 'models' AS "table", 'model_sha256' AS columns, model_sha256::VARCHAR AS key, count(*) AS n
FROM models
GROUP BY model_sha256
HAVING n > 1
UNION ALL
SELECT 'saes' AS "table", 'run_id, layer' AS columns, concat_ws(':', run_id, layer) AS key, count(*) AS n
FROM saes
GROUP BY run_id, layer
HAVING n > 1
UNION ALL
SELECT 'sae_quality' AS "table", 'run_id, layer, category' AS columns, concat_ws(':', run_id, layer, category) AS key, count(*) AS n
FROM sae_quality
GROUP BY run_id, layer, category
HAVING n > 1
UNION ALL
SELECT 'run_energies' AS "table", 'run_id, energy' AS columns, concat_ws(':', run_id, energy) AS key, count(*) AS n
FROM run_energies
GROUP BY run_id, energy
HAVING n > 1
