UPDATE intervention_settings
SET finished_at = now() AT TIME ZONE 'UTC'
WHERE run_id = $run AND intervention_id = $intervention
