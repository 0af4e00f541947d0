SELECT
    run_id,
    dtype,
    segment_contexts,
    stats_groups,
    run_id IN (SELECT run_id FROM calibration) AS calibrated,
    created_at
FROM runs
WHERE identity = $identity
