-- Interventions, their features and contexts, patches and effects have one row each.
SELECT 'intervention_settings' AS "table", 'run_id, intervention_id' AS columns, concat_ws(':', run_id, intervention_id) AS key, count(*) AS n
FROM intervention_settings
GROUP BY run_id, intervention_id
HAVING n > 1
UNION ALL
SELECT 'intervention_features' AS "table", 'run_id, intervention_id, feature' AS columns, concat_ws(':', run_id, intervention_id, feature) AS key, count(*) AS n
FROM intervention_features
GROUP BY run_id, intervention_id, feature
HAVING n > 1
UNION ALL
SELECT 'intervention_contexts' AS "table", 'run_id, intervention_id, context_id' AS columns, concat_ws(':', run_id, intervention_id, context_id) AS key, count(*) AS n
FROM intervention_contexts
GROUP BY run_id, intervention_id, context_id
HAVING n > 1
UNION ALL
SELECT 'interventions' AS "table", 'run_id, intervention_id, feature, direction, context_id' AS columns, concat_ws(':', run_id, intervention_id, feature, direction, context_id) AS key, count(*) AS n
FROM interventions
GROUP BY run_id, intervention_id, feature, direction, context_id
HAVING n > 1
UNION ALL
SELECT 'effect_statistics' AS "table", 'run_id, intervention_id, feature, direction, category' AS columns, concat_ws(':', run_id, intervention_id, feature, direction, category) AS key, count(*) AS n
FROM effect_statistics
GROUP BY run_id, intervention_id, feature, direction, category
HAVING n > 1
UNION ALL
SELECT 'predictor_statistics' AS "table", 'run_id, intervention_id, validation, target, predictor' AS columns, concat_ws(':', run_id, intervention_id, validation, target, predictor) AS key, count(*) AS n
FROM predictor_statistics
GROUP BY run_id, intervention_id, validation, target, predictor
HAVING n > 1
UNION ALL
SELECT 'attractor_shifts' AS "table", 'run_id, intervention_id, feature, direction, context_id, later_layer, place' AS columns, concat_ws(':', run_id, intervention_id, feature, direction, context_id, later_layer, place) AS key, count(*) AS n
FROM attractor_shifts
GROUP BY run_id, intervention_id, feature, direction, context_id, later_layer, place
HAVING n > 1
