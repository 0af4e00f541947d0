-- Whether the file still holds that very run, and not another one by its id.
SELECT count(*) > 0
FROM runs
WHERE run_id = $run AND identity = $identity AND created_at = $created_at
