-- The five largest basins of each layer, what they are made of, and the token that half B of the documents confirms.
SELECT
    a.layer,
    a.attractor,
    a.type,
    a.n_tokens,
    a.perplexity,
    a.features[1] AS feature,
    a.weights[1] AS weight,
    f.top_tokens[:3] AS top_tokens,
    a.label,
    a.label_lift
FROM attractors AS a
LEFT JOIN features AS f ON f.layer = a.layer AND f.feature = a.features[1]
WHERE a.run_id = (SELECT run_id FROM current_run) AND a.attractor < 5
ORDER BY a.layer, a.attractor
