-- Where a context stands in the text; without a row when the current run has no context of that number.
SELECT
    c.context_id,
    c.document_id,
    d.path,
    d.category,
    c.context_index,
    c.first_token,
    c.n_tokens,
    c.context_id * r.context_length AS first_id
FROM current_run AS r
JOIN contexts AS c USING (run_id)
JOIN documents AS d USING (run_id, document_id)
WHERE c.context_id = $context
