UPDATE runs
SET is_compiled = true
WHERE run_id = $run
