-- Finished interventions of a run whose statistics are of an older version.
SELECT intervention_id, seed
FROM intervention_settings
WHERE run_id = $run AND finished_at IS NOT NULL AND statistics_version < $version
ORDER BY intervention_id
