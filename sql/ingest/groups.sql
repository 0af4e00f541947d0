SELECT group_id, category, half, committed_at IS NOT NULL AS committed
FROM plan_groups
WHERE run_id = $run
ORDER BY group_id
