-- Contexts of the committed groups, with what a balanced sample goes by, and the document of each.
SELECT g.category, g.half, c.context_id, d.sha256
FROM plan AS p
JOIN plan_groups AS g USING (run_id, group_id)
JOIN contexts AS c USING (run_id, context_id)
JOIN documents AS d USING (run_id, document_id)
WHERE p.run_id = $run AND g.committed_at IS NOT NULL
ORDER BY g.category, g.half, c.context_id
