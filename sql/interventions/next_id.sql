SELECT coalesce(max(intervention_id), 0) + 1
FROM intervention_settings
WHERE run_id = $run
