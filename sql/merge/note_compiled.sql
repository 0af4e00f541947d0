UPDATE runs
SET is_compiled = true
WHERE run_id = $run AND NOT is_compiled
