-- Tokens without a class, context by context; a context has all of its tokens here or none.
SELECT token_id // $context_length AS context_id, token_id, text
FROM tokens
WHERE run_id = $run AND class IS NULL
ORDER BY token_id
