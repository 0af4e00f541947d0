-- The SAE of each layer of a run: where it was, and its norm median.
SELECT layer, sae_sha256, source, norm_median
FROM saes
WHERE run_id = $run
ORDER BY layer
