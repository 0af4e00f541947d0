-- Tokens of contexts, in order.
SELECT t.token_id, t.token_id // r.context_length AS context_id, t.text
FROM tokens AS t
JOIN current_run AS r USING (run_id)
WHERE t.token_id // r.context_length IN (SELECT unnest($contexts))
ORDER BY t.token_id
