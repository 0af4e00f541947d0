-- Which tokens enter the statistics at each layer, and why the others do not.
SELECT
    layer,
    count(*) AS n_tokens,
    count(*) FILTER (included) AS n_included,
    count(*) FILTER (included) / count(*) AS share_included,
    count(*) FILTER (reason = 'first token') AS n_first_token,
    count(*) FILTER (reason = 'massive norm') AS n_massive_norm,
    count(*) FILTER (reason = 'special token') AS n_special_token,
    count(*) FILTER (reason = 'no next token') AS n_no_next_token,
    count(*) FILTER (counted) AS n_counted
FROM token_layers
WHERE run_id = (SELECT run_id FROM current_run)
GROUP BY layer
ORDER BY layer
