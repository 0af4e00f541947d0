-- Scores by category of documents.
SELECT e.feature, e.energy, e.category, e.n_tokens, e.n_active, e.score, e.z, e.q_specific
FROM efas AS e
JOIN run_energies AS r ON r.run_id = e.run_id AND r.energy = e.energy
WHERE
    e.layer = $layer AND e.feature IN (SELECT unnest($features)) AND e.category <> 'all' AND e.gradient = 'decoder'
ORDER BY e.feature, r.position, e.category
