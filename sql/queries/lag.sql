-- The current run, the tokens that it holds and those that its statistics cover, when they are fewer.
SELECT run_id, sum(g.n_tokens) AS committed, any_value(r.stats_tokens) AS covered
FROM runs AS r
JOIN plan_groups AS g USING (run_id)
WHERE r.is_current AND g.committed_at IS NOT NULL
GROUP BY run_id
HAVING sum(g.n_tokens) > any_value(r.stats_tokens)
