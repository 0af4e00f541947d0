SELECT n_probes
FROM intervention_settings
WHERE run_id = $run AND intervention_id = $intervention
