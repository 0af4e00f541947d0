-- Contexts of the run whose tokens are stored, with their documents.
SELECT c.context_id, c.context_index, c.n_tokens, d.document_id, d.path, d.category
FROM contexts AS c
JOIN documents AS d USING (run_id, document_id)
WHERE
    c.run_id = (SELECT run_id FROM current_run)
    AND EXISTS (
        FROM tokens AS t
        WHERE
            t.run_id = c.run_id
            AND t.token_id = c.context_id * (SELECT context_length FROM current_run)
    )
ORDER BY c.context_id
