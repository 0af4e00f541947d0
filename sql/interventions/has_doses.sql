-- Whether an intervention's patches are measured at other doses than 1.
SELECT doses IS NOT NULL
FROM intervention_settings
WHERE run_id = $run AND intervention_id = $intervention
