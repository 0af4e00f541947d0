-- Features whose rows are the references of one layer, in the order in which sums along them are stored.
SELECT feature
FROM reference_rows
WHERE run_id = $run AND layer = $layer
ORDER BY feature
