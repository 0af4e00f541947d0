-- What the options of a command can name in this file: the current run's layers, energies and categories, and its runs.
SELECT 'layer' AS kind, layer::VARCHAR AS name
FROM (SELECT unnest(layers) AS layer FROM current_run)
UNION ALL
SELECT 'energy', unnest(energies)
FROM current_run
UNION ALL
SELECT DISTINCT 'category', category
FROM documents
WHERE run_id = (SELECT run_id FROM current_run)
UNION ALL
SELECT 'run', run_id::VARCHAR
FROM runs
