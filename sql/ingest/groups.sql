-- Groups of a run, in order, and where they are: stored here, or staged.
SELECT
    group_id,
    category,
    half,
    committed_at IS NOT NULL AS committed,
    group_id IN (SELECT group_id FROM staged_groups WHERE run_id = $run) AS staged
FROM plan_groups
WHERE run_id = $run
ORDER BY group_id
