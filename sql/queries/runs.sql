-- Runs of the warehouse, how far they are and which is current.
SELECT
    r.run_id,
    r.is_current AS current,
    r.model,
    array_to_string(r.layers, ',') AS layers,
    array_to_string(r.energies, ',') AS energies,
    r.dtype,
    r.seed,
    coalesce(sum(g.n_tokens) FILTER (g.committed_at IS NOT NULL), 0) AS tokens,
    coalesce(sum(g.n_tokens), 0) AS planned_tokens,
    r.stats_tokens,
    date_trunc('second', r.created_at) AS created_at
FROM runs AS r
LEFT JOIN plan_groups AS g USING (run_id)
GROUP BY ALL
ORDER BY r.run_id
