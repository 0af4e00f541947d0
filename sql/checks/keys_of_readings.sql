-- What was read at a token, layer, feature or energy is stored once.
SELECT 'token_layers' AS "table", 'run_id, token_id, layer' AS columns, concat_ws(':', run_id, token_id, layer) AS key, count(*) AS n
FROM token_layers
GROUP BY run_id, token_id, layer
HAVING n > 1
UNION ALL
SELECT 'energies' AS "table", 'run_id, token_id, layer, energy' AS columns, concat_ws(':', run_id, token_id, layer, energy) AS key, count(*) AS n
FROM energies
GROUP BY run_id, token_id, layer, energy
HAVING n > 1
UNION ALL
SELECT 'gradients' AS "table", 'run_id, token_id, layer, energy' AS columns, concat_ws(':', run_id, token_id, layer, energy) AS key, count(*) AS n
FROM gradients
GROUP BY run_id, token_id, layer, energy
HAVING n > 1
UNION ALL
SELECT 'document_gradients' AS "table", 'run_id, group_id, document_id, layer, energy' AS columns, concat_ws(':', run_id, group_id, document_id, layer, energy) AS key, count(*) AS n
FROM document_gradients
GROUP BY run_id, group_id, document_id, layer, energy
HAVING n > 1
UNION ALL
SELECT 'activations' AS "table", 'run_id, layer, feature, token_id' AS columns, concat_ws(':', run_id, layer, feature, token_id) AS key, count(*) AS n
FROM activations
GROUP BY run_id, layer, feature, token_id
HAVING n > 1
UNION ALL
SELECT 'feature_moments' AS "table", 'run_id, group_id, layer, feature, energy' AS columns, concat_ws(':', run_id, group_id, layer, feature, energy) AS key, count(*) AS n
FROM feature_moments
GROUP BY run_id, group_id, layer, feature, energy
HAVING n > 1
UNION ALL
SELECT 'feature_histograms' AS "table", 'run_id, group_id, layer, feature, energy' AS columns, concat_ws(':', run_id, group_id, layer, feature, energy) AS key, count(*) AS n
FROM feature_histograms
GROUP BY run_id, group_id, layer, feature, energy
HAVING n > 1
UNION ALL
SELECT 'feature_directions' AS "table", 'run_id, group_id, layer, feature, energy' AS columns, concat_ws(':', run_id, group_id, layer, feature, energy) AS key, count(*) AS n
FROM feature_directions
GROUP BY run_id, group_id, layer, feature, energy
HAVING n > 1
UNION ALL
SELECT 'feature_documents' AS "table", 'run_id, group_id, document_id, layer, feature, energy' AS columns, concat_ws(':', run_id, group_id, document_id, layer, feature, energy) AS key, count(*) AS n
FROM feature_documents
GROUP BY run_id, group_id, document_id, layer, feature, energy
HAVING n > 1
