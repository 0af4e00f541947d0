-- Attractors of the current run, the largest basins of each layer, with the strongest tokens of their first feature.
SELECT
    a.layer,
    a.attractor,
    a.type,
    a.n_tokens,
    round(a.perplexity, 1) AS perplexity,
    a.label,
    round(a.label_lift, 1) AS lift,
    a.features,
    list_transform(a.weights, lambda w: round(w::DOUBLE, 2)) AS weights,
    f.top_tokens[:4] AS first_feature_fires_on
FROM attractors AS a
LEFT JOIN features AS f ON f.layer = a.layer AND f.feature = a.features[1]
WHERE a.run_id = (SELECT run_id FROM current_run) AND a.layer IN (SELECT unnest($layers::INTEGER[]))
    AND a.attractor < $limit
ORDER BY a.layer, a.attractor
