-- How many activations of a layer's features delphi's files hold, and how many are left out for what reason.
SELECT
    count(*) FILTER (c.n_tokens = r.context_length AND a.activation > $above) AS n_kept,
    count(*) FILTER (c.n_tokens < r.context_length) AS n_in_short_contexts,
    count(*) FILTER (c.n_tokens = r.context_length AND a.activation <= $above) AS n_small,
    count(*) FILTER (c.n_tokens = r.context_length AND a.activation > $largest) AS n_too_large
FROM activations AS a
JOIN current_run AS r USING (run_id)
JOIN contexts AS c ON c.run_id = a.run_id AND c.context_id = a.token_id // r.context_length
WHERE a.layer = $layer AND ($features IS NULL OR a.feature IN (SELECT unnest($features)))
