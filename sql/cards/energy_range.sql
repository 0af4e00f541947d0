-- How one energy is distributed over the run's tokens, at one layer or, for the model's own output, at none.
SELECT r.energy, e.layer, r.units, r.is_loss, r.is_control, e.n_tokens, e.mean, e.sd, e.q05, e.q95
FROM run_energies AS r
LEFT JOIN layer_energy AS e
    ON e.energy = r.energy AND e.category = 'all' AND e.layer IS NOT DISTINCT FROM $layer
WHERE r.run_id = (SELECT run_id FROM current_run) AND r.energy = $energy
