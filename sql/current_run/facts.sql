-- The current run, or one by its id: what its model and its gradients are.
SELECT run_id, model, model_sha256, context_length, d_model, dtype, store_gradients, layers, energies, settings
FROM runs
WHERE CASE WHEN $run::INTEGER IS NULL THEN is_current ELSE run_id = $run END
