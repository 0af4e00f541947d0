-- Tokens of some contexts at which a layer's features are active.
SELECT a.feature, a.token_id
FROM activations AS a
WHERE a.run_id = $run AND a.layer = $layer
    AND a.token_id // $context_length IN (SELECT unnest($contexts::INTEGER[]))
ORDER BY a.feature, a.token_id
