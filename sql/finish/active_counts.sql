-- How often each feature of a layer is active.
SELECT feature, count(*) AS n_active
FROM activations
WHERE run_id = $run AND layer = $layer
GROUP BY feature
