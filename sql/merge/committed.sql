-- Groups whose rows the file holds, and what computed them.
SELECT group_id, cpu
FROM plan_groups
WHERE run_id = $run AND committed_at IS NOT NULL
ORDER BY group_id
