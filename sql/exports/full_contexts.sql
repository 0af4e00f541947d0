-- Stored contexts of full length in the order of their ids: a row each of delphi's tokens, from 0.
SELECT
    row_number() OVER (ORDER BY c.context_id) - 1 AS row,
    c.context_id,
    d.path,
    c.first_token
FROM current_run AS r
JOIN plan AS p USING (run_id)
JOIN plan_groups AS g USING (run_id, group_id)
JOIN contexts AS c USING (run_id, context_id)
JOIN documents AS d USING (run_id, document_id)
WHERE g.committed_at IS NOT NULL AND c.n_tokens = r.context_length
ORDER BY c.context_id
