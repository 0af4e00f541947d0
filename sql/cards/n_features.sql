-- Features of the current run that fire.
SELECT count(*)
FROM feature_activity
WHERE run_id = (SELECT run_id FROM current_run)
