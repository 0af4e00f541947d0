UPDATE runs
SET stats_groups = covered.n_groups, stats_tokens = covered.n_tokens, updated_at = now() AT TIME ZONE 'UTC'
FROM (
    SELECT count(*) AS n_groups, coalesce(sum(n_tokens), 0) AS n_tokens
    FROM plan_groups
    WHERE run_id = $run AND committed_at IS NOT NULL
) AS covered
WHERE runs.run_id = $run
