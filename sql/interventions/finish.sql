UPDATE intervention_settings
SET finished_at = coalesce(finished_at, now() AT TIME ZONE 'UTC'), statistics_version = $version
WHERE run_id = $run AND intervention_id = $intervention
