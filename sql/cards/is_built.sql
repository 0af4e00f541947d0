-- Whether the cards of the current run's features are there: true of a run in which none fires.
SELECT
    r.run_id,
    NOT EXISTS (FROM feature_activity AS a WHERE a.run_id = r.run_id)
    OR EXISTS (FROM activation_histogram AS h WHERE h.run_id = r.run_id) AS is_built
FROM current_run AS r
