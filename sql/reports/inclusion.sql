-- Which tokens enter the statistics at each layer, and why the others do not.
SELECT
    layer,
    sum(n_tokens)::BIGINT AS n_tokens,
    coalesce(sum(n_tokens) FILTER (reason IS NULL), 0)::BIGINT AS n_included,
    n_included / sum(n_tokens) AS share_included,
    coalesce(sum(n_tokens) FILTER (reason = 'first token'), 0)::BIGINT AS n_first_token,
    coalesce(sum(n_tokens) FILTER (reason = 'BOS'), 0)::BIGINT AS n_bos,
    coalesce(sum(n_tokens) FILTER (reason = 'massive norm'), 0)::BIGINT AS n_massive_norm,
    coalesce(sum(n_tokens) FILTER (reason = 'special token'), 0)::BIGINT AS n_special_token,
    coalesce(sum(n_tokens) FILTER (reason = 'no next token'), 0)::BIGINT AS n_no_next_token,
    sum(n_counted)::BIGINT AS n_counted
FROM layer_tokens
WHERE run_id = (SELECT run_id FROM current_run)
GROUP BY layer
ORDER BY layer
