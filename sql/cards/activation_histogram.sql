-- The histogram of a feature's activations.
SELECT feature, low, high, counts
FROM activation_histogram
WHERE run_id = (SELECT run_id FROM current_run) AND layer = $layer AND feature IN (SELECT unnest($features))
ORDER BY feature
