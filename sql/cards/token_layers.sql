-- Whether statistics of a layer are taken over a token, and why not.
SELECT layer, norm, included, reason
FROM token_layers
WHERE run_id = (SELECT run_id FROM current_run) AND token_id = $token
ORDER BY layer
