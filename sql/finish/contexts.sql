-- Committed contexts with their document and where the plan has them, in order.
SELECT c.context_id, c.document_id, p.group_id, p.row, p.lane
FROM contexts AS c
JOIN plan AS p USING (run_id, context_id)
JOIN plan_groups AS g USING (run_id, group_id)
WHERE c.run_id = $run AND g.committed_at IS NOT NULL
ORDER BY c.context_id
