-- Included tokens of some contexts at a layer.
SELECT token_id
FROM token_layers
WHERE run_id = $run AND layer = $layer AND included
    AND token_id // $context_length IN (SELECT unnest($contexts::BIGINT[]))
ORDER BY token_id
