DELETE FROM critical_doses
WHERE run_id = $run AND layer = $layer AND feature = $feature
