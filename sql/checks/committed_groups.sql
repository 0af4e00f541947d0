-- A committed group has the tokens that its plan says, and a group that is only planned has none.
WITH stored AS (
    SELECT t.run_id, t.token_id // r.context_length AS context_id, count(*) AS n_tokens
    FROM tokens AS t
    JOIN runs AS r USING (run_id)
    GROUP BY ALL
),
by_group AS (
    SELECT p.run_id, p.group_id, count(*) AS n_contexts, sum(c.n_tokens) AS planned, coalesce(sum(s.n_tokens), 0) AS stored
    FROM plan AS p
    JOIN contexts AS c USING (run_id, context_id)
    LEFT JOIN stored AS s USING (run_id, context_id)
    GROUP BY ALL
)
SELECT
    g.run_id,
    g.group_id,
    g.n_contexts,
    coalesce(b.n_contexts, 0) AS n_contexts_planned,
    g.n_tokens,
    coalesce(b.planned, 0)::BIGINT AS n_tokens_planned,
    coalesce(b.stored, 0)::BIGINT AS n_tokens_stored,
    g.committed_at IS NOT NULL AS is_committed
FROM plan_groups AS g
LEFT JOIN by_group AS b USING (run_id, group_id)
WHERE g.n_contexts <> n_contexts_planned
    OR g.n_tokens <> n_tokens_planned
    OR n_tokens_stored <> CASE WHEN is_committed THEN g.n_tokens ELSE 0 END
