-- Statistics of 32 features a layer, drawn with the run's seed, are those of the stored activations.
-- Runs whose statistics lag behind their tokens are left out until their ingest has finished.
WITH covered AS (
    SELECT r.run_id, r.seed, r.context_length
    FROM runs AS r
    JOIN plan_groups AS g USING (run_id)
    WHERE g.committed_at IS NOT NULL
    GROUP BY ALL
    HAVING sum(g.n_tokens) = any_value(r.stats_tokens)
),
drawn AS MATERIALIZED (
    SELECT s.run_id, s.layer, s.feature
    FROM feature_statistics AS s
    JOIN covered AS c USING (run_id)
    WHERE s.category = 'all' AND s.half = 'AB' AND s.gradient = 'decoder'
    GROUP BY s.run_id, s.layer, s.feature, c.seed
    QUALIFY row_number() OVER (
        PARTITION BY s.run_id, s.layer ORDER BY md5(concat_ws(':', c.seed, s.layer, s.feature)), s.feature
    ) <= 32
),
active AS MATERIALIZED (
    SELECT *
    FROM activations
    SEMI JOIN drawn USING (run_id, layer, feature)
),
with_gradients AS (
    SELECT run_id, layer, feature, token_id, activation, substr("column", 3) AS energy, 'decoder' AS gradient, g
    FROM (UNPIVOT active ON COLUMNS('^g_') INTO NAME "column" VALUE g)
    UNION ALL
    SELECT a.run_id, a.layer, a.feature, a.token_id, a.activation, g.energy, 'discrete', g.discrete
    FROM active AS a
    JOIN gradients AS g ON g.run_id = a.run_id AND g.layer = a.layer AND g.token_id = a.token_id
    WHERE g.discrete IS NOT NULL
),
placed AS (
    SELECT
        w.*,
        unnest(
            [
                {'category': 'all', 'half': 'AB'},
                {'category': d.category, 'half': 'AB'},
                {'category': 'all', 'half': d.half}
            ],
            recursive := true
        )
    FROM with_gradients AS w
    JOIN covered AS r ON r.run_id = w.run_id
    JOIN contexts AS c ON c.run_id = w.run_id AND c.context_id = w.token_id // r.context_length
    JOIN documents AS d ON d.run_id = c.run_id AND d.document_id = c.document_id
),
recomputed AS (
    SELECT
        run_id,
        layer,
        feature,
        energy,
        gradient,
        category,
        half,
        count(*) AS n_active,
        fsum(activation) AS sum_a,
        fsum(activation::DOUBLE * activation) AS sum_a2,
        fsum(activation::DOUBLE * g) AS sum_ag,
        fsum(g) AS active_g,
        fsum(g::DOUBLE * g) AS active_g2
    FROM placed
    GROUP BY ALL
),
stored AS (
    SELECT run_id, layer, feature, energy, gradient, category, half, n_active, sum_a, sum_a2, sum_ag, active_g, active_g2
    FROM feature_statistics
    SEMI JOIN drawn USING (run_id, layer, feature)
)
SELECT
    run_id,
    layer,
    feature,
    energy,
    gradient,
    category,
    half,
    s.n_active,
    r.n_active AS n_active_recomputed,
    s.sum_a,
    r.sum_a AS sum_a_recomputed,
    s.sum_ag,
    r.sum_ag AS sum_ag_recomputed
FROM stored AS s
FULL JOIN recomputed AS r USING (run_id, layer, feature, energy, gradient, category, half)
WHERE NOT coalesce(
    s.n_active = coalesce(r.n_active, 0)
    AND abs(s.sum_a - coalesce(r.sum_a, 0)) <= 1e-9 * s.sum_a
    AND abs(s.sum_a2 - coalesce(r.sum_a2, 0)) <= 1e-9 * s.sum_a2
    AND abs(s.sum_ag - coalesce(r.sum_ag, 0)) <= 1e-9 * sqrt(s.sum_a2 * s.active_g2)
    AND abs(s.active_g - coalesce(r.active_g, 0)) <= 1e-9 * sqrt(s.n_active * s.active_g2)
    AND abs(s.active_g2 - coalesce(r.active_g2, 0)) <= 1e-9 * s.active_g2,
    -- A run whose documents are all of one half has no rows by half.
    s.run_id IS NULL AND half <> 'AB' AND run_id NOT IN (SELECT run_id FROM feature_statistics WHERE half <> 'AB')
)
