-- Every energy of a token of the current run.
SELECT e.energy, e.layer, e.value, r.units
FROM energies AS e
JOIN run_energies AS r ON r.run_id = e.run_id AND r.energy = e.energy
WHERE e.run_id = (SELECT run_id FROM current_run) AND e.token_id = $token
ORDER BY r.position, e.layer
