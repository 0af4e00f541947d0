UPDATE intervention_contexts
SET measured_at = now() AT TIME ZONE 'UTC'
WHERE run_id = $run AND intervention_id = $intervention AND batch = $batch
