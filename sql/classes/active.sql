-- Where the features of a layer are active.
SELECT feature, token_id
FROM activations
WHERE run_id = $run AND layer = $layer
ORDER BY feature, token_id
