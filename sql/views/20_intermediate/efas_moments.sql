-- Means, variances and covariances from the stored sums: one row per row of feature_statistics.
-- columns as in: feature_statistics, runs
CREATE OR REPLACE VIEW efas_moments AS
SELECT
    s.*,
    r.model,
    sum_ag / n_tokens - (sum_a / n_tokens) * (sum_g / n_tokens) AS covariance,
    greatest(sum_a2 / n_tokens - (sum_a / n_tokens) ** 2, 0) AS variance_a,
    greatest(sum_g2 / n_tokens - (sum_g / n_tokens) ** 2, 0) AS variance_g,
    CASE WHEN n_active >= 3
        THEN sum_ag / n_active - (sum_a / n_active) * (active_g / n_active) END AS active_covariance,
    CASE WHEN n_active >= 3
        THEN greatest(sum_a2 / n_active - (sum_a / n_active) ** 2, 0) END AS active_variance_a,
    CASE WHEN n_active >= 3
        THEN greatest(active_g2 / n_active - (active_g / n_active) ** 2, 0) END AS active_variance_g,
    CASE WHEN n_documents > 1 THEN sqrt(n_documents / (n_documents - 1.0)) END AS cluster_factor
FROM feature_statistics AS s
JOIN runs AS r USING (run_id)
WHERE n_tokens > 0;
COMMENT ON VIEW efas_moments IS 'feature_statistics with population moments of a and g: over all included tokens, and over active ones (from 3 of them).';
COMMENT ON COLUMN efas_moments.covariance IS 'Population covariance of a and g.';
COMMENT ON COLUMN efas_moments.variance_a IS 'Population variance of a.';
COMMENT ON COLUMN efas_moments.variance_g IS 'Population variance of g.';
COMMENT ON COLUMN efas_moments.active_covariance IS 'Population covariance over active tokens.';
COMMENT ON COLUMN efas_moments.active_variance_a IS 'Population variance of a over active tokens.';
COMMENT ON COLUMN efas_moments.active_variance_g IS 'Population variance of g over active tokens.';
COMMENT ON COLUMN efas_moments.cluster_factor IS 'sqrt(D / (D - 1)), D documents: the small-sample factor of a clustered standard error.';
