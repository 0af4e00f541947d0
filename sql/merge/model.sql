-- The model of a run.
SELECT models.*
FROM models
JOIN runs USING (model_sha256)
WHERE run_id = $run
