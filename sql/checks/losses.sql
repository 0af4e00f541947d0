-- A loss, being minus a log probability, is not below 0.
SELECT e.run_id, e.energy, e.layer, e.token_id, e.value
FROM energies AS e
JOIN run_energies AS x USING (run_id, energy)
-- What is left of a certain token's loss is rounding; NaN is above every number.
WHERE x.is_loss AND NOT (e.value >= -1e-4 AND isfinite(e.value))
