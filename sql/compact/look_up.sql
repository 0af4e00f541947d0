-- All activations of one feature of a layer.
SELECT count(*), sum(activation), max(token_id)
FROM {table}
WHERE run_id = $run AND layer = $layer AND feature = $feature
