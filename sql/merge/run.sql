-- What is needed of a run to take groups of it over, and how far its statistics are.
SELECT context_length, stats_groups
FROM runs
WHERE run_id = $run
