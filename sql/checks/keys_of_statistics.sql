-- Statistics, histograms, classes and calibrations of a feature have one row each, and so have sizes of a layer.
SELECT 'feature_statistics' AS "table", 'run_id, layer, feature, energy, gradient, category, half' AS columns, concat_ws(':', run_id, layer, feature, energy, gradient, category, half) AS key, count(*) AS n
FROM feature_statistics
GROUP BY run_id, layer, feature, energy, gradient, category, half
HAVING n > 1
UNION ALL
SELECT 'histogram_cells' AS "table", 'run_id, layer, feature, energy, category' AS columns, concat_ws(':', run_id, layer, feature, energy, category) AS key, count(*) AS n
FROM histogram_cells
GROUP BY run_id, layer, feature, energy, category
HAVING n > 1
UNION ALL
SELECT 'feature_classes' AS "table", 'run_id, layer, feature, class, labels' AS columns, concat_ws(':', run_id, layer, feature, class, labels) AS key, count(*) AS n
FROM feature_classes
GROUP BY run_id, layer, feature, class, labels
HAVING n > 1
UNION ALL
SELECT 'calibration' AS "table", 'run_id, layer, feature, energy' AS columns, concat_ws(':', run_id, layer, feature, energy) AS key, count(*) AS n
FROM calibration
GROUP BY run_id, layer, feature, energy
HAVING n > 1
UNION ALL
SELECT 'activation_quartiles' AS "table", 'run_id, layer, feature' AS columns, concat_ws(':', run_id, layer, feature) AS key, count(*) AS n
FROM activation_quartiles
GROUP BY run_id, layer, feature
HAVING n > 1
UNION ALL
SELECT 'reference_rows' AS "table", 'run_id, layer, feature' AS columns, concat_ws(':', run_id, layer, feature) AS key, count(*) AS n
FROM reference_rows
GROUP BY run_id, layer, feature
HAVING n > 1
UNION ALL
SELECT 'feature_activity' AS "table", 'run_id, layer, feature' AS columns, concat_ws(':', run_id, layer, feature) AS key, count(*) AS n
FROM feature_activity
GROUP BY run_id, layer, feature
HAVING n > 1
UNION ALL
SELECT 'layer_tokens' AS "table", 'run_id, layer, reason' AS columns, concat_ws(':', run_id, layer, reason) AS key, count(*) AS n
FROM layer_tokens
GROUP BY run_id, layer, reason
HAVING n > 1
UNION ALL
SELECT 'layer_energies' AS "table", 'run_id, energy, layer, category' AS columns, concat_ws(':', run_id, energy, layer, category) AS key, count(*) AS n
FROM layer_energies
GROUP BY run_id, energy, layer, category
HAVING n > 1
UNION ALL
SELECT 'layer_losses' AS "table", 'run_id, energy, layer' AS columns, concat_ws(':', run_id, energy, layer) AS key, count(*) AS n
FROM layer_losses
GROUP BY run_id, energy, layer
HAVING n > 1
