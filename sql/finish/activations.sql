-- Activations of some features of a layer. {gradients} is the quoted columns of energies, each after a comma.
SELECT feature, token_id, activation{gradients}
FROM activations
WHERE run_id = $run AND layer = $layer AND feature >= $start AND feature < $stop
