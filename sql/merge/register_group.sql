-- A group of the plan that is neither stored nor staged, as staged.
INSERT INTO staged_groups BY NAME
SELECT
    run_id,
    group_id,
    $location AS location,
    $n_rows AS n_rows,
    $n_bytes AS n_bytes,
    $staged_at AS staged_at
FROM plan_groups
WHERE run_id = $run AND group_id = $group AND committed_at IS NULL
    AND group_id NOT IN (SELECT group_id FROM staged_groups WHERE run_id = $run)
