-- What the stream kept of some features, summed over the groups of each category and half, for one layer and energy;
-- groups_of_cells is a temporary table that `finish` fills.
SELECT
    m.feature,
    c.cell,
    fsum(m.sum_g2) AS sum_g2,
    fsum(m.sum_gc2) AS sum_gc2,
    sum(m.n_contexts) AS n_counted_contexts,
    sum(m.n_counted) AS n_counted,
    fsum(m.sum_s) AS sum_s,
    fsum(m.sum_s2) AS sum_s2,
    fsum(m.null_s) AS null_s,
    fsum(m.null_s2) AS null_s2,
    fsum(m.sum_a2h2) AS sum_a2h2
FROM feature_moments AS m
JOIN groups_of_cells AS c USING (group_id)
WHERE m.run_id = $run AND m.layer = $layer AND m.energy = $energy AND m.feature >= $start AND m.feature < $stop
GROUP BY m.feature, c.cell
