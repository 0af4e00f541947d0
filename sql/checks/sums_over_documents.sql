-- Sums of the within-context test over documents are those over the group.
-- They are stored as FLOAT, so that a sum that cancels is held against the size of what it sums.
WITH by_document AS (
    SELECT run_id, group_id, layer, energy, feature, sum(sum_s::DOUBLE) AS sum_s, sum(abs(sum_s)) AS size
    FROM feature_documents
    GROUP BY ALL
),
by_group AS (
    SELECT run_id, group_id, layer, energy, feature, sum_s, n_counted
    FROM feature_moments
    SEMI JOIN by_document USING (run_id, group_id)
)
SELECT
    run_id,
    group_id,
    layer,
    energy,
    feature,
    g.sum_s,
    d.sum_s AS sum_s_of_documents
FROM by_group AS g
FULL JOIN by_document AS d USING (run_id, group_id, layer, energy, feature)
WHERE NOT coalesce(abs(g.sum_s - d.sum_s) <= 1e-6 * d.size, d.sum_s IS NULL AND g.n_counted = 0)
