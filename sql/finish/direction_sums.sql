-- Sums along shared directions, group by group, for one layer and energy.
SELECT d.feature, p.category, p.half, d.scale, d.along
FROM feature_directions AS d
JOIN plan_groups AS p USING (run_id, group_id)
WHERE d.run_id = $run AND d.layer = $layer AND d.energy = $energy
ORDER BY d.feature, d.group_id
