-- Tokens of the stored contexts of full length, one context behind the other.
SELECT t.vocabulary_id
FROM current_run AS r
JOIN tokens AS t USING (run_id)
JOIN contexts AS c ON c.run_id = t.run_id AND c.context_id = t.token_id // r.context_length
WHERE c.n_tokens = r.context_length
ORDER BY t.token_id
