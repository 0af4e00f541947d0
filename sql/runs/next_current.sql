-- The run that is shown when the current one is gone: the latest with statistics, else the latest.
SELECT run_id
FROM runs
ORDER BY stats_tokens > 0 DESC, run_id DESC
LIMIT 1
