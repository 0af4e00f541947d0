-- Energies of the tokens of contexts; without a layer, of the model's output.
SELECT e.energy, e.layer, e.token_id, e.value
FROM energies AS e
JOIN current_run AS r USING (run_id)
WHERE e.token_id // r.context_length IN (SELECT unnest($contexts))
ORDER BY e.energy, e.layer NULLS FIRST, e.token_id
