SELECT context_length, seed, layers, energies
FROM runs
WHERE run_id = $run
