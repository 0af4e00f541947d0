-- The cells of a histogram count the active and all tokens that the feature's statistics count.
SELECT run_id, layer, feature, energy, category, list_sum(h.active) AS n_in_cells, s.n_active, h.n_tokens, s.n_tokens AS n_counted
FROM histogram_cells AS h
JOIN feature_statistics AS s USING (run_id, layer, feature, energy, category)
WHERE s.gradient = 'decoder' AND s.half = 'AB' AND (list_sum(h.active) <> s.n_active OR h.n_tokens <> s.n_tokens)
