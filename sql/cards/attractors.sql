-- Attractors of the layer that a feature is a part of, and how many of the sample's tokens at which it is active fall there.
WITH wanted AS (
    SELECT unnest($features) AS feature
),
fallen AS (
    SELECT a.feature, b.attractor, count(*) AS n_active
    FROM activations AS a
    JOIN basins AS b ON b.run_id = a.run_id AND b.layer = a.layer AND b.token_id = a.token_id
    WHERE
        a.run_id = (SELECT run_id FROM current_run) AND a.layer = $layer
        AND a.feature IN (SELECT feature FROM wanted) AND b.attractor IS NOT NULL
    GROUP BY ALL
)
SELECT
    w.feature,
    t.attractor,
    t.type,
    t.label,
    t.n_tokens,
    t.perplexity,
    t.energy,
    t.features,
    t.weights,
    list_position(t.features, w.feature) AS place,
    coalesce(f.n_active, 0) AS n_active
FROM wanted AS w
JOIN attractors AS t ON t.run_id = (SELECT run_id FROM current_run) AND t.layer = $layer
LEFT JOIN fallen AS f ON f.feature = w.feature AND f.attractor = t.attractor
WHERE list_contains(t.features, w.feature) OR f.n_active > 0
QUALIFY row_number() OVER (
    PARTITION BY w.feature ORDER BY list_contains(t.features, w.feature) DESC, f.n_active DESC NULLS LAST, t.attractor
) <= 10
ORDER BY w.feature, list_contains(t.features, w.feature) DESC, n_active DESC, t.attractor
