-- Correlations lie between -1 and 1.
WITH efas_rows AS (
    SELECT run_id, layer, feature, energy, gradient, category, half, unnest([score, score_active]) AS correlation
    FROM efas_scores
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
