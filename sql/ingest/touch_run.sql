UPDATE runs
SET updated_at = now() AT TIME ZONE 'UTC'
WHERE run_id = $run
