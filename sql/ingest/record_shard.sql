UPDATE runs
SET shard = $shard
WHERE run_id = $run AND shard IS DISTINCT FROM $shard
