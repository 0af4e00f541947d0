-- The current run: what its model and its gradients are.
SELECT run_id, model, model_sha256, context_length, d_model, dtype, store_gradients, layers, energies, settings
FROM runs
WHERE is_current
