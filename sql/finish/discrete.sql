-- The discrete gradient of one layer and energy, where it is defined.
SELECT token_id, discrete
FROM gradients
WHERE run_id = $run AND layer = $layer AND energy = $energy AND discrete IS NOT NULL
