-- The current run's layers, and whether an energy is read at each of them.
SELECT list_sort(c.layers) AS layers, r.at_layers
FROM current_run AS c
JOIN run_energies AS r USING (run_id)
WHERE r.energy = $energy
