-- Batches of contexts that are still to be measured.
SELECT batch, list(context_id ORDER BY context_id)
FROM intervention_contexts
WHERE run_id = $run AND intervention_id = $intervention AND measured_at IS NULL
GROUP BY batch
ORDER BY batch
