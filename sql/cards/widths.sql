-- Features of each layer's SAE.
SELECT layer, d_sae
FROM saes
WHERE run_id = (SELECT run_id FROM current_run)
ORDER BY layer
