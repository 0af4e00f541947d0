INSERT INTO layer_tokens
SELECT run_id, layer, reason, count(*), count(*) FILTER (counted)
FROM token_layers
WHERE run_id = $run
GROUP BY run_id, layer, reason
ORDER BY ALL
