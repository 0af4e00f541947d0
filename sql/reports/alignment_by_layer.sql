-- How scores are distributed over features, and how many survive each test, by energy, gradient and layer.
-- q_specific asks for the feature's own direction, q_value whether the gradient is out of the ordinary where it fires,
-- q_documents whether that would hold in other documents. Each q is taken within a layer; n_specific_at_once is what one
-- false discovery rate over all layers leaves. The row without a layer holds all layers at which the energy is
-- calibrated. Roles come from q_attribution, never from score.
WITH scored AS (
    SELECT e.*, u.layer IS NOT NULL AS is_uncalibrated
    FROM efas AS e
    LEFT JOIN uncalibrated_layers AS u USING (energy, layer)
    WHERE category = 'all'
),
cells AS (
    SELECT * FROM scored
    UNION ALL
    SELECT * REPLACE (NULL AS layer) FROM scored WHERE NOT is_uncalibrated
),
ranked AS (
    SELECT
        *,
        count(p_specific) OVER cell AS n_p,
        row_number() OVER (PARTITION BY energy, gradient, layer ORDER BY p_specific NULLS LAST, feature) AS place
    FROM cells
    WINDOW cell AS (PARTITION BY energy, gradient, layer)
)
SELECT
    energy,
    is_control(energy) AS is_control,
    gradient,
    layer,
    is_uncalibrated,
    count(*) AS n_features,
    count(*) FILTER (n_active > 0) AS n_firing,
    count(q_value) AS n_tested,
    count(*) FILTER (n_active > 0 AND q_value IS NULL) AS n_untested,
    count(q_specific) AS n_tested_specific,
    count(*) FILTER (q_specific < 0.05) AS n_specific,
    count(*) FILTER (q_specific < 0.05) / nullif(count(q_specific), 0) AS share_specific,
    -- What a test leaves cannot be told from noise by it.
    count(*) FILTER (q_specific >= 0.05) AS n_unspecific,
    count(*) FILTER (q_specific < 0.05 AND t_specific > 0) AS n_specific_positive,
    count(*) FILTER (q_specific < 0.05 AND t_specific < 0) AS n_specific_negative,
    min(abs(score)) FILTER (q_specific < 0.05) AS smallest_specific,
    median(abs(score)) FILTER (q_specific < 0.05) AS median_specific,
    max(abs(score)) FILTER (q_specific < 0.05) AS largest_specific,
    median(abs(cosine)) FILTER (q_specific < 0.05) AS cosine_specific,
    -- Benjamini and Hochberg's step-up: all up to the last p that lies below its place's share of 5 %.
    CASE
        WHEN layer IS NULL AND any_value(n_p) > 0
            THEN coalesce(max(place) FILTER (p_specific < 0.05 * place / n_p), 0)
    END AS n_specific_at_once,
    count(*) FILTER (q_specific < 0.05 AND q_value < 0.05) AS n_specific_and_significant,
    count(*) FILTER (q_value < 0.05) AS n_significant,
    count(*) FILTER (q_value < 0.05) / nullif(count(q_value), 0) AS share_significant,
    count(*) FILTER (q_value >= 0.05) AS n_insignificant,
    count(q_documents) AS n_tested_documents,
    count(*) FILTER (q_documents < 0.05) AS n_significant_documents,
    count(*) FILTER (q_documents >= 0.05) AS n_insignificant_documents,
    quantile_cont(score, 0.05) AS score_q05,
    quantile_cont(score, 0.25) AS score_q25,
    median(score) AS score_median,
    quantile_cont(score, 0.75) AS score_q75,
    quantile_cont(score, 0.95) AS score_q95,
    max(abs(score)) AS score_largest,
    median(score_active) AS score_active_median,
    median(cosine) AS cosine_median,
    count(q_attribution) AS n_attributed,
    count(attribution_curvature) > 0 AS has_curvature,
    count(*) FILTER (role = 'supports') AS n_supports,
    count(*) FILTER (role = 'opposes') AS n_opposes,
    count(*) FILTER (role IS NULL AND q_attribution IS NOT NULL) AS n_without_role,
    count(*) FILTER (role IS NOT NULL) / nullif(count(q_attribution), 0) AS share_with_role
FROM ranked
GROUP BY energy, gradient, layer, is_uncalibrated
ORDER BY is_control, energy, gradient, layer NULLS LAST
