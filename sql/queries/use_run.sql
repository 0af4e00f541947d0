-- Make one run the current one.
UPDATE runs SET is_current = (run_id = $run_id)
