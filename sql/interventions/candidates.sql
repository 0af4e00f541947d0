-- Features of a layer with what they can be chosen by; those that never fire in the run have n_active 0.
SELECT
    e.feature,
    e.n_active,
    e.score,
    e.z,
    e.attribution,
    e.attribution_curvature,
    e.n_active / e.n_tokens AS density,
    m.mi_excess
FROM efas AS e
LEFT JOIN mutual_information AS m USING (layer, feature, energy, category)
WHERE e.layer = $layer AND e.energy = $energy AND e.gradient = 'decoder' AND e.category = 'all'
ORDER BY e.feature
