-- Features that fire, with the token of their strongest activation.
SELECT layer, feature, top_tokens[1] AS text
FROM feature_activity
WHERE run_id = (SELECT run_id FROM current_run)
ORDER BY layer, feature
