-- How often the tests reject at 5 % where nothing is true, beside how often they do as they are: the within-context test
-- with the gradients of another context, the test of the direction with another feature's decoder row. The sizes beside
-- them are medians over the tested features: those of the positive control are the sizes that the tests are known to
-- see. The row without a layer holds all layers.
WITH controls AS (
    SELECT
        energy,
        layer,
        sum(n_tested)::BIGINT AS n_tested,
        sum(share_rejected * n_tested) / sum(n_tested) AS share_rejected,
        sum(share_rejected_true_pairing * n_tested) / sum(n_tested) AS share_rejected_true_pairing,
        -- A layer with too few reference rows has no such shares.
        sum(share_reference_rejected * n_tested)
        / sum(n_tested) FILTER (share_reference_rejected IS NOT NULL) AS share_reference_rejected,
        sum(share_specific * n_tested) / sum(n_tested) FILTER (share_specific IS NOT NULL) AS share_specific
    FROM null_control
    WHERE gradient = 'decoder' AND category = 'all'
    GROUP BY GROUPING SETS ((energy, layer), (energy))
),
sizes AS (
    SELECT energy, layer, median(abs(score)) AS median_score, median(abs(cosine)) AS median_cosine
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all' AND z_null IS NOT NULL
    GROUP BY GROUPING SETS ((energy, layer), (energy))
)
SELECT
    c.energy,
    is_control(c.energy) AS is_control,
    c.layer,
    c.n_tested,
    c.share_rejected,
    c.share_rejected_true_pairing,
    c.share_reference_rejected,
    c.share_specific,
    s.median_score,
    s.median_cosine
FROM controls AS c
JOIN sizes AS s ON s.energy = c.energy AND s.layer IS NOT DISTINCT FROM c.layer
ORDER BY is_control, c.energy, c.layer NULLS LAST
