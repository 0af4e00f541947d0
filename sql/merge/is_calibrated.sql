SELECT count(*) > 0
FROM calibration
WHERE run_id = $run
