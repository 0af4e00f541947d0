-- Features of a layer that fire in the run: dead rows are no memories.
SELECT DISTINCT feature
FROM activations
WHERE run_id = $run AND layer = $layer
ORDER BY feature
