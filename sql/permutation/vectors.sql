-- Stored gradient vectors of the included tokens of some contexts.
SELECT token_id, vector
FROM gradients
WHERE run_id = $run AND layer = $layer AND energy = $energy
    AND token_id // $context_length IN (SELECT unnest($contexts::BIGINT[]))
ORDER BY token_id
