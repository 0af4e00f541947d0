-- Tokens at which a feature is active.
SELECT token_id
FROM activations
WHERE run_id = $run AND layer = $layer AND feature = $feature
ORDER BY token_id
