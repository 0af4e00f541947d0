-- The first contexts of an intervention, whether or not they are measured.
SELECT context_id
FROM intervention_contexts
WHERE run_id = $run AND intervention_id = $intervention
ORDER BY batch, context_id
LIMIT $n
