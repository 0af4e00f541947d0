-- Where the plan of a run has each context.
SELECT p.group_id, p.row, p.lane, c.context_id, c.document_id, c.context_index, c.first_token, c.n_tokens
FROM plan AS p
JOIN contexts AS c USING (run_id, context_id)
WHERE p.run_id = $run
ORDER BY p.group_id, p.row, p.lane
