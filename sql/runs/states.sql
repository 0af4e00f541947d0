-- How many runs there are, and which one is current.
SELECT count(*) AS n_runs, any_value(run_id) FILTER (is_current) AS current
FROM runs
