-- A token's id is its context's times the context length plus its position, which lies within the context.
SELECT t.run_id, t.token_id, t.position, c.n_tokens
FROM tokens AS t
JOIN runs AS r USING (run_id)
JOIN contexts AS c ON c.run_id = t.run_id AND c.context_id = t.token_id // r.context_length
WHERE t.position <> t.token_id % r.context_length OR t.position >= c.n_tokens OR c.n_tokens > r.context_length
