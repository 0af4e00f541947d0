-- The runs that use an SAE on the model it was evaluated with.
SELECT s.run_id, s.layer
FROM saes AS s
JOIN runs AS r USING (run_id)
WHERE s.sae_sha256 = $sae_sha256 AND r.model_sha256 = $model_sha256
ORDER BY s.run_id
