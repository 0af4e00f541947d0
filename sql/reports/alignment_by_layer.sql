-- How scores are distributed over features, and how many survive a test, by energy, gradient and layer.
-- The row without a layer holds all layers at which the energy is calibrated. Roles come from the interval of
-- attribution, never from score.
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
    count(*) FILTER (q_value < 0.05) AS n_significant,
    count(*) FILTER (q_value < 0.05) / nullif(count(q_value), 0) AS share_significant,
    count(*) FILTER (q_value < 0.05 AND z > 0) AS n_significant_positive,
    count(*) FILTER (q_value < 0.05 AND z < 0) AS n_significant_negative,
    min(abs(score)) FILTER (q_value < 0.05) AS smallest_significant,
    median(abs(score)) FILTER (q_value < 0.05) AS median_significant,
    max(abs(score)) FILTER (q_value < 0.05) AS largest_significant,
    quantile_cont(score, 0.05) AS score_q05,
    quantile_cont(score, 0.25) AS score_q25,
    median(score) AS score_median,
    quantile_cont(score, 0.75) AS score_q75,
    quantile_cont(score, 0.95) AS score_q95,
    max(abs(score)) AS score_largest,
    median(score_active) AS score_active_median,
    count(attribution_low) FILTER (n_active > 0) AS n_intervals,
    count(*) FILTER (role = 'attractor') AS n_attractors,
    count(*) FILTER (role = 'repulsor') AS n_repulsors,
    count(*) FILTER (role IS NOT NULL) / nullif(count(attribution_low) FILTER (n_active > 0), 0) AS share_with_role
FROM cells
GROUP BY energy, gradient, layer, is_uncalibrated
ORDER BY is_control, energy, gradient, layer NULLS LAST
