-- Tokens that a feature promotes and suppresses by the direct path.
SELECT feature, direction, place, vocabulary_id, text, logit
FROM feature_logits
WHERE run_id = (SELECT run_id FROM current_run) AND layer = $layer AND feature IN (SELECT unnest($features))
ORDER BY feature, direction, place
