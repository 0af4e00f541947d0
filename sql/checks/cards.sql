-- What a card shows of a feature's activations adds up to the tokens at which it is active.
SELECT a.run_id, a.layer, a.feature, a.n_active, list_sum(h.counts) AS n_in_histogram, i.n_tokens AS n_in_intervals
FROM feature_activity AS a
JOIN activation_histogram AS h USING (run_id, layer, feature)
LEFT JOIN (
    SELECT run_id, layer, feature, sum(n_tokens) AS n_tokens
    FROM activation_intervals
    WHERE "interval" > 0
    GROUP BY ALL
) AS i USING (run_id, layer, feature)
WHERE list_sum(h.counts) <> a.n_active OR i.n_tokens IS DISTINCT FROM a.n_active
