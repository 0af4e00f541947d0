-- Contexts that the current run plans to read; they are numbered from 0.
SELECT count(*)
FROM contexts
WHERE run_id = (SELECT run_id FROM current_run)
