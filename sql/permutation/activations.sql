-- Activations of some features at the counted tokens of some contexts.
SELECT a.token_id, a.feature, a.activation
FROM activations AS a
JOIN token_layers AS t ON t.run_id = $run AND t.layer = $layer AND t.token_id = a.token_id
WHERE a.run_id = $run AND a.layer = $layer AND t.counted
    AND a.feature IN (SELECT unnest($features::INTEGER[]))
    AND a.token_id // $context_length IN (SELECT unnest($contexts::BIGINT[]))
ORDER BY a.feature, a.token_id
