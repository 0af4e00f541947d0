-- Features of an intervention that can have an effect.
SELECT feature
FROM intervention_features
WHERE run_id = $run AND intervention_id = $intervention AND note IS NULL
ORDER BY feature
