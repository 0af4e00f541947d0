-- Tokens of the vocabulary that a feature fires on most often.
SELECT feature, place, vocabulary_id, text, n_active, n_tokens, n_active / n_tokens AS share, mean_activation
FROM feature_tokens
WHERE run_id = (SELECT run_id FROM current_run) AND layer = $layer AND feature IN (SELECT unnest($features))
ORDER BY feature, place
