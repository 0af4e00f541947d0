-- Correlations, cosines and the ends of their intervals lie between -1 and 1.
-- The intervals of statistics of before version 3, which have no sum_i2, may pass them.
WITH efas_rows AS (
    SELECT
        run_id,
        layer,
        feature,
        energy,
        gradient,
        category,
        half,
        unnest(
            [score, score_active, score_within, cosine, CASE WHEN is_new THEN ci_low END, CASE WHEN is_new THEN ci_high END]
        ) AS correlation
    FROM efas_scores
    JOIN (SELECT run_id, count(sum_i2) > 0 AS is_new FROM feature_statistics GROUP BY run_id) USING (run_id)
),
predictors AS (
    SELECT run_id, intervention_id, validation, target, predictor, unnest([spearman, pearson]) AS correlation
    FROM predictor_statistics
)
SELECT *
FROM efas_rows
WHERE NOT abs(correlation) <= 1 + 1e-9
UNION ALL BY NAME
SELECT *
FROM predictors
WHERE NOT abs(correlation) <= 1 + 1e-9
