-- Readings of an intervention have one row for each feature and context.
SELECT 'intervention_readings' AS "table", 'run_id, intervention_id, feature, context_id' AS columns, concat_ws(':', run_id, intervention_id, feature, context_id) AS key, count(*) AS n
FROM intervention_readings
GROUP BY run_id, intervention_id, feature, context_id
HAVING n > 1
