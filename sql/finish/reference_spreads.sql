-- Squared centred gradients along the reference rows of a layer, by category and half, for one energy.
SELECT m.feature, c.cell, fsum(m.sum_gc2) AS sum_gc2
FROM feature_moments AS m
JOIN groups_of_cells AS c USING (group_id)
SEMI JOIN reference_rows AS r ON r.run_id = m.run_id AND r.layer = m.layer AND r.feature = m.feature
WHERE m.run_id = $run AND m.layer = $layer AND m.energy = $energy
GROUP BY m.feature, c.cell
