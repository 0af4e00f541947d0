-- The largest attractors of the current run's model itself.
SELECT attractor, n_tokens, n_distinct, label, round(label_lift, 1) AS lift, says
FROM native_attractors
WHERE run_id = (SELECT run_id FROM current_run) AND weights = 'trained' AND attractor < $limit
ORDER BY attractor
