-- Runs that a table has rows of, and the file does not know.
SELECT DISTINCT run_id
FROM {table}
WHERE run_id NOT IN (SELECT run_id FROM runs)
