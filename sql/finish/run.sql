SELECT context_length, layers, energies
FROM runs
WHERE run_id = $run
