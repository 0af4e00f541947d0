-- Means, variances and covariances from the stored sums: one row per row of feature_statistics.
-- columns as in: feature_statistics, runs
CREATE OR REPLACE VIEW efas_moments AS
WITH means AS (
    SELECT
        s.*,
        r.model,
        sum_a / n_tokens AS mean_a,
        sum_g / n_tokens AS mean_g,
        sum_a2 / n_tokens AS square_a,
        sum_g2 / n_tokens AS square_g,
        -- Two points always correlate perfectly.
        CASE WHEN n_active >= 3 THEN n_active END AS n,
        sum_a / n AS active_mean_a,
        active_g / n AS active_mean_g,
        sum_a2 / n AS active_square_a,
        active_g2 / n AS active_square_g
    FROM feature_statistics AS s
    JOIN runs AS r USING (run_id)
    WHERE n_tokens > 0
)
SELECT
    * EXCLUDE (
        mean_a, mean_g, square_a, square_g, n, active_mean_a, active_mean_g, active_square_a, active_square_g
    ),
    sum_ag / n_tokens - mean_a * mean_g AS covariance,
    nonzero_variance(square_a, mean_a) AS variance_a,
    nonzero_variance(square_g, mean_g) AS variance_g,
    sum_ag / n - active_mean_a * active_mean_g AS active_covariance,
    nonzero_variance(active_square_a, active_mean_a) AS active_variance_a,
    nonzero_variance(active_square_g, active_mean_g) AS active_variance_g,
    CASE WHEN n_documents > 1 THEN sqrt(n_documents / (n_documents - 1.0)) END AS cluster_factor
FROM means;
COMMENT ON VIEW efas_moments IS 'feature_statistics with population moments of a and g: over all included tokens, and over active ones (from 3 of them).';
COMMENT ON COLUMN efas_moments.covariance IS 'Population covariance of a and g.';
COMMENT ON COLUMN efas_moments.variance_a IS 'Population variance of a.';
COMMENT ON COLUMN efas_moments.variance_g IS 'Population variance of g.';
COMMENT ON COLUMN efas_moments.active_covariance IS 'Population covariance over active tokens.';
COMMENT ON COLUMN efas_moments.active_variance_a IS 'Population variance of a over active tokens.';
COMMENT ON COLUMN efas_moments.active_variance_g IS 'Population variance of g over active tokens.';
COMMENT ON COLUMN efas_moments.cluster_factor IS 'sqrt(D / (D - 1)), D documents: the small-sample factor of a clustered standard error.';
