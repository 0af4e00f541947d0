-- Scores, intervals and tests as algebra on the moments; every run, category and half.
-- columns as in: efas, efas_halves
CREATE OR REPLACE VIEW efas_scores AS
WITH scored AS (
    SELECT
        *,
        sqrt(variance_a * variance_g) AS scale,
        sqrt(active_variance_a * active_variance_g) AS active_scale,
        sqrt(sum_ac2 * sum_gc2) AS within_scale,
        t_quantile * cluster_factor * sqrt(sum_u2) / n_tokens AS covariance_margin,
        t_quantile * cluster_factor * sqrt(sum_v2) AS attribution_margin,
        gradient = 'decoder' AS is_decoder,
        p_value IS NOT NULL AS is_tested
    FROM efas_moments
)
SELECT
    run_id,
    model,
    layer,
    feature,
    energy,
    gradient,
    category,
    half,
    n_tokens,
    n_active,
    n_documents,
    CASE WHEN scale > 0 THEN covariance / scale END AS score,
    CASE WHEN active_scale > 0 THEN active_covariance / active_scale END AS score_active,
    CASE WHEN within_scale > 0 THEN sum_s / within_scale END AS score_within,
    CASE WHEN scale > 0 THEN (covariance - covariance_margin) / scale END AS ci_low,
    CASE WHEN scale > 0 THEN (covariance + covariance_margin) / scale END AS ci_high,
    CASE WHEN is_tested AND sum_s2 > 0 THEN sum_s / sqrt(sum_s2) END AS z,
    p_value,
    q_value,
    CASE WHEN is_tested AND null_s2 > 0 THEN null_s / sqrt(null_s2) END AS z_null,
    CASE WHEN is_decoder THEN sum_ag END AS attribution,
    CASE WHEN is_decoder THEN sum_ag - attribution_margin END AS attribution_low,
    CASE WHEN is_decoder THEN sum_ag + attribution_margin END AS attribution_high,
    CASE WHEN is_decoder THEN sum_ag + sum_a2h2 / 2 END AS attribution_curvature,
    CASE
        WHEN is_decoder AND sum_ag - attribution_margin > 0 THEN 'attractor'
        WHEN is_decoder AND sum_ag + attribution_margin < 0 THEN 'repulsor'
    END AS role
FROM scored;
COMMENT ON VIEW efas_scores IS 'EFAS of every run, category and half; efas, efas_all and efas_halves are its parts.';
