-- Where a token of the vocabulary occurs: in how many documents and contexts of how many.
SELECT
    count(*) AS n_tokens,
    (SELECT count(*) FROM tokens WHERE run_id = (SELECT run_id FROM current_run)) AS n_all,
    count(DISTINCT c.document_id) AS n_documents,
    count(DISTINCT c.context_id) AS n_contexts,
    array_agg(DISTINCT d.category ORDER BY d.category) AS categories
FROM tokens AS t
JOIN current_run AS r USING (run_id)
JOIN contexts AS c ON c.run_id = t.run_id AND c.context_id = t.token_id // r.context_length
JOIN documents AS d ON d.run_id = t.run_id AND d.document_id = c.document_id
WHERE t.vocabulary_id IN (SELECT unnest($ids))
