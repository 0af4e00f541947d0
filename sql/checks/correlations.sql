-- Correlations, cosines and the ends of their intervals lie between -1 and 1.
-- The intervals of statistics of before version 3, which have no sum_i2, may pass them. What efas makes of the sums keeps
-- to 1 by itself, so the sums are asked; tokens that are nearly alike leave them rounding of up to 1e-6.
WITH of_sums AS (
    SELECT
        run_id,
        layer,
        feature,
        energy,
        gradient,
        category,
        half,
        unnest(
            [
                covariance / sqrt(nullif(variance_a * variance_g, 0)),
                active_covariance / sqrt(nullif(active_variance_a * active_variance_g, 0)),
                sum_s / sqrt(nullif(sum_ac2 * sum_gc2, 0)),
            ]
        ) AS correlation
    FROM efas_moments
),
efas_rows AS (
    SELECT
        run_id,
        layer,
        feature,
        energy,
        gradient,
        category,
        half,
        unnest([cosine, CASE WHEN is_new THEN ci_low END, CASE WHEN is_new THEN ci_high END]) AS correlation
    FROM efas_scores
    JOIN (SELECT run_id, count(sum_i2) > 0 AS is_new FROM feature_statistics GROUP BY run_id) USING (run_id)
),
predictors AS (
    SELECT run_id, intervention_id, validation, target, predictor, unnest([spearman, pearson]) AS correlation
    FROM predictor_statistics
)
SELECT *
FROM of_sums
WHERE NOT abs(correlation) <= 1 + 1e-6
UNION ALL BY NAME
SELECT *
FROM efas_rows
WHERE NOT abs(correlation) <= 1 + 1e-9
UNION ALL BY NAME
SELECT *
FROM predictors
WHERE NOT abs(correlation) <= 1 + 1e-9
