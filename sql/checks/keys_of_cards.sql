-- Logits, examples, neighbours and tokens of a feature have one row for each of their places.
SELECT 'feature_logits' AS "table", 'run_id, layer, feature, direction, place' AS columns, concat_ws(':', run_id, layer, feature, direction, place) AS key, count(*) AS n
FROM feature_logits
GROUP BY run_id, layer, feature, direction, place
HAVING n > 1
UNION ALL
SELECT 'logit_histogram' AS "table", 'run_id, layer, feature' AS columns, concat_ws(':', run_id, layer, feature) AS key, count(*) AS n
FROM logit_histogram
GROUP BY run_id, layer, feature
HAVING n > 1
UNION ALL
SELECT 'activation_histogram' AS "table", 'run_id, layer, feature' AS columns, concat_ws(':', run_id, layer, feature) AS key, count(*) AS n
FROM activation_histogram
GROUP BY run_id, layer, feature
HAVING n > 1
UNION ALL
SELECT 'activation_intervals' AS "table", 'run_id, layer, feature, interval' AS columns, concat_ws(':', run_id, layer, feature, "interval") AS key, count(*) AS n
FROM activation_intervals
GROUP BY run_id, layer, feature, "interval"
HAVING n > 1
UNION ALL
SELECT 'feature_neighbours' AS "table", 'run_id, layer, feature, measure, place' AS columns, concat_ws(':', run_id, layer, feature, measure, place) AS key, count(*) AS n
FROM feature_neighbours
GROUP BY run_id, layer, feature, measure, place
HAVING n > 1
UNION ALL
SELECT 'feature_tokens' AS "table", 'run_id, layer, feature, place' AS columns, concat_ws(':', run_id, layer, feature, place) AS key, count(*) AS n
FROM feature_tokens
GROUP BY run_id, layer, feature, place
HAVING n > 1
