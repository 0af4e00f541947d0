-- Scores by energy and gradient, with bits of mutual information for the decoder gradient.
SELECT e.* EXCLUDE (run_id, model, category), m.mi, m.mi_mates, m.mi_excess, r.units, r.is_control
FROM efas AS e
JOIN run_energies AS r ON r.run_id = e.run_id AND r.energy = e.energy
LEFT JOIN mutual_information AS m
    ON e.gradient = 'decoder' AND m.layer = e.layer AND m.feature = e.feature AND m.energy = e.energy
    AND m.category = 'all'
WHERE e.layer = $layer AND e.feature IN (SELECT unnest($features)) AND e.category = 'all'
ORDER BY e.feature, r.position, e.gradient
