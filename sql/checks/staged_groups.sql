-- A staged group is planned, and its rows are not in the file too.
SELECT s.run_id, s.group_id, s.location, g.committed_at
FROM staged_groups AS s
LEFT JOIN plan_groups AS g USING (run_id, group_id)
WHERE g.group_id IS NULL OR g.committed_at IS NOT NULL
