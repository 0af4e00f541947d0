-- Of each feature of an intervention, those whose decoder rows are its controls.
SELECT feature, coalesce(control_features, [])
FROM intervention_features
WHERE run_id = $run AND intervention_id = $intervention
