-- Features of the same layer that are nearest, with what they fire on.
SELECT n.feature, n.measure, n.place, n.neighbour, n.value, n.n_both, a.n_active, a.top_tokens
FROM feature_neighbours AS n
JOIN feature_activity AS a ON a.run_id = n.run_id AND a.layer = n.layer AND a.feature = n.neighbour
WHERE n.run_id = (SELECT run_id FROM current_run) AND n.layer = $layer AND n.feature IN (SELECT unnest($features))
ORDER BY n.feature, n.measure, n.place
