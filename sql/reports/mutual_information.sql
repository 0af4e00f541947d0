-- How much a feature's activation tells about its decoder gradient, by energy and layer, over features active at 50
-- tokens or more: bits, what unrelated contexts come to, and the excess. The rank correlation with |score| says how far
-- the two measures agree. The row without a layer holds all layers at which the energy is calibrated.
WITH measured AS (
    SELECT energy, layer, m.mi, m.mi_mates, m.mi_excess, abs(e.score) AS strength
    FROM mutual_information AS m
    JOIN efas AS e USING (run_id, layer, feature, energy, category)
    WHERE category = 'all' AND e.gradient = 'decoder' AND m.n_active >= 50 AND m.mi_excess IS NOT NULL
),
cells AS (
    SELECT * FROM measured
    UNION ALL
    SELECT * REPLACE (NULL AS layer) FROM measured
    WHERE (energy, layer) NOT IN (SELECT (energy, layer) FROM uncalibrated_layers)
),
ranked AS (
    SELECT
        *,
        rank() OVER (PARTITION BY energy, layer, strength IS NULL ORDER BY mi_excess) AS rank_excess,
        rank() OVER (PARTITION BY energy, layer, strength IS NULL ORDER BY strength) AS rank_strength
    FROM cells
)
SELECT
    energy,
    is_control(energy) AS is_control,
    layer,
    count(*) AS n_features,
    avg(mi) AS mean,
    avg(mi_mates) AS mates_mean,
    avg(mi_excess) AS excess_mean,
    quantile_cont(mi_excess, 0.95) AS excess_q95,
    max(mi_excess) AS excess_largest,
    corr(rank_excess, rank_strength) FILTER (strength IS NOT NULL) AS spearman
FROM ranked
GROUP BY energy, layer
ORDER BY is_control, energy, layer NULLS LAST
