-- Groups of a run, in order, and which of them the file holds.
SELECT group_id, category, half, n_tokens, committed_at IS NOT NULL AS committed
FROM plan_groups
WHERE run_id = $run
ORDER BY group_id
