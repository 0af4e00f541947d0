-- The same for the discrete gradient that finish/centre_discrete prepared, over the tokens where it is defined, and what
-- the within-context test sums over them; sum_ac2 is as in finish/counted_activations.
WITH sizes AS (
    SELECT context_id, count(*) AS n
    FROM centred_discrete
    WHERE tested IS NOT NULL
    GROUP BY context_id
),
by_context AS (
    SELECT
        a.feature,
        d.context_id,
        count(*) AS n_active,
        fsum(a.activation) AS sum_a,
        fsum(a.activation::DOUBLE * a.activation) AS sum_a2,
        fsum(a.activation::DOUBLE * d.discrete) AS sum_ag,
        fsum(d.discrete) AS active_g,
        fsum(d.discrete::DOUBLE * d.discrete) AS active_g2,
        count(d.tested) AS n_counted,
        fsum(a.activation) FILTER (d.tested IS NOT NULL) AS counted_a,
        fsum(a.activation::DOUBLE * a.activation) FILTER (d.tested IS NOT NULL) AS counted_a2,
        coalesce(fsum(a.activation::DOUBLE * d.tested), 0) AS s,
        coalesce(fsum(a.activation::DOUBLE * d.control), 0) AS s_null
    FROM activations AS a
    JOIN centred_discrete AS d USING (token_id)
    WHERE a.run_id = $run AND a.layer = $layer
    GROUP BY a.feature, d.context_id
)
SELECT
    b.feature,
    c.document_id,
    sum(b.n_active) AS n_active,
    fsum(b.sum_a) AS sum_a,
    fsum(b.sum_a2) AS sum_a2,
    fsum(b.sum_ag) AS sum_ag,
    fsum(b.active_g) AS active_g,
    fsum(b.active_g2) AS active_g2,
    sum(b.n_counted) AS n_counted,
    count(*) FILTER (b.n_counted > 0) AS n_counted_contexts,
    fsum(b.s) AS sum_s,
    fsum(b.s * b.s) AS sum_s2,
    fsum(b.s_null) AS null_s,
    fsum(b.s_null * b.s_null) AS null_s2,
    coalesce(fsum(b.counted_a2 - b.counted_a * b.counted_a / z.n), 0) AS sum_ac2
FROM by_context AS b
JOIN contexts AS c ON c.run_id = $run AND c.context_id = b.context_id
LEFT JOIN sizes AS z ON z.context_id = b.context_id
GROUP BY b.feature, c.document_id
ORDER BY b.feature, c.document_id
