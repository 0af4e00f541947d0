-- A counted token is included, and a token has a reason exactly when it is not included.
SELECT run_id, layer, token_id, included, counted, reason
FROM token_layers
WHERE (counted AND NOT included) OR included = (reason IS NOT NULL)
