-- How tokens of the current run settle on its model's own landscape, trained and untrained.
SELECT *
FROM native_settings
WHERE run_id = (SELECT run_id FROM current_run)
ORDER BY weights DESC
