-- An intervention of that identity: its key, and whether its statistics are there.
SELECT intervention_id, finished_at IS NOT NULL
FROM intervention_settings
WHERE run_id = $run AND identity = $identity
