UPDATE plan_groups
SET committed_at = now() AT TIME ZONE 'UTC', cpu = $cpu
WHERE run_id = $run AND group_id = $group AND committed_at IS NULL
