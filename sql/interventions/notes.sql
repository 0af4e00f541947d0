-- Features of an intervention without an effect, by reason.
SELECT note, list(feature ORDER BY feature)
FROM intervention_features
WHERE run_id = (SELECT run_id FROM current_run) AND intervention_id = $intervention AND note IS NOT NULL
GROUP BY note
ORDER BY note
