-- Which energies are stored, at which layers, and which of them are losses.
SELECT e.energy, e.layer, coalesce(x.is_loss, false) AS is_loss
FROM (SELECT DISTINCT energy, layer FROM energies WHERE run_id = $run) AS e
LEFT JOIN run_energies AS x ON x.run_id = $run AND x.energy = e.energy
ORDER BY x.position, e.energy, e.layer
