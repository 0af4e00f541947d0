-- Documents with committed contexts, in order.
SELECT DISTINCT d.document_id, d.category, d.half
FROM documents AS d
JOIN contexts AS c USING (run_id, document_id)
JOIN plan AS p USING (run_id, context_id)
JOIN plan_groups AS g USING (run_id, group_id)
WHERE d.run_id = $run AND g.committed_at IS NOT NULL
ORDER BY d.document_id
