-- A loss, being minus a log probability, is not below 0.
SELECT e.run_id, e.energy, e.layer, e.token_id, e.value
FROM energies AS e
JOIN run_energies AS x USING (run_id, energy)
WHERE x.is_loss AND NOT e.value >= -1e-4  -- what is left of a certain token's loss is rounding
