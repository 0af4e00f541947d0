-- A few predictors of an intervention, for one line.
SELECT predictor, spearman
FROM predictor_validation
WHERE intervention_id = $intervention AND validation = 'same' AND target = 'sum' AND spearman IS NOT NULL
    AND predictor IN ('blended', 'aligned', 'norm_curvature', 'curvature', 'first_order', 'efas', 'sum_change2')
ORDER BY spearman DESC
