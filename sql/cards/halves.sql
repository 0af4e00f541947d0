-- The same score on each half of the documents alone.
SELECT h.feature, h.energy, h.half, h.n_active, h.score, h.z, h.q_specific, h.cosine
FROM efas_halves AS h
JOIN run_energies AS r ON r.run_id = h.run_id AND r.energy = h.energy
WHERE
    h.layer = $layer AND h.feature IN (SELECT unnest($features)) AND h.category = 'all' AND h.gradient = 'decoder'
ORDER BY h.feature, r.position, h.half
