-- Doses of patches, and the exponents of dose, have one row each.
SELECT 'intervention_doses' AS "table", 'run_id, intervention_id, feature, direction, context_id, dose' AS columns, concat_ws(':', run_id, intervention_id, feature, direction, context_id, dose) AS key, count(*) AS n
FROM intervention_doses
GROUP BY run_id, intervention_id, feature, direction, context_id, dose
HAVING n > 1
UNION ALL
SELECT 'dose_statistics' AS "table", 'run_id, intervention_id, feature, control, measure' AS columns, concat_ws(':', run_id, intervention_id, feature, control, measure) AS key, count(*) AS n
FROM dose_statistics
GROUP BY run_id, intervention_id, feature, control, measure
HAVING n > 1
UNION ALL
SELECT 'dose_summaries' AS "table", 'run_id, intervention_id, control, measure' AS columns, concat_ws(':', run_id, intervention_id, control, measure) AS key, count(*) AS n
FROM dose_summaries
GROUP BY run_id, intervention_id, control, measure
HAVING n > 1
