-- Committed groups, in order.
SELECT group_id, category, half
FROM plan_groups
WHERE run_id = $run AND committed_at IS NOT NULL
ORDER BY group_id
