-- Vocabulary ids of some contexts, which is all that is needed to run the model on them again.
SELECT token_id // $context_length AS context_id, vocabulary_id
FROM tokens
WHERE run_id = $run AND token_id // $context_length IN (SELECT unnest($contexts::BIGINT[]))
ORDER BY token_id
