-- Whether the model's blocks were fused in a run of an attached warehouse.
SELECT is_compiled
FROM {database}.main.runs
WHERE run_id = $run
