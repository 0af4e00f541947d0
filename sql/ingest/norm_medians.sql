SELECT layer, norm_median
FROM saes
WHERE run_id = $run
ORDER BY layer
