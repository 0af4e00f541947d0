-- Exactly one run is current, where there are any.
SELECT count(*) AS n_runs, count(*) FILTER (is_current) AS n_current
FROM runs
HAVING n_runs > 0 AND n_current <> 1
