-- Does what is found on half of the documents hold on the other half? Rank correlation of the two scores over features
-- active at 50 tokens or more of both halves. Of the features with q_specific < 0.05 in half A: how many keep their sign
-- and reach p_specific < 0.05 in half B, and how large the score is in A, where it was selected, and in B with A's sign.
-- z_variance is Var(z_A - z_B) / 2, which is 1 where contexts are independent samples, and more where documents differ.
-- spearman_noise is what unrelated scores of as many features stay below in 95 of 100 cases.
-- The row without a layer holds all layers at which the energy is calibrated.
WITH pairs AS (
    SELECT
        energy,
        layer,
        least(a.n_active, b.n_active) >= 50 AND a.score IS NOT NULL AND b.score IS NOT NULL AS is_common,
        a.score AS score_a,
        b.score AS score_b,
        a.z - b.z AS z_difference,
        a.z_null - b.z_null AS z_null_difference,
        a.q_specific < 0.05 AS is_found,
        a.q_specific < 0.05 AND b.t_specific IS NOT NULL AS is_retested,
        sign(a.t_specific) = sign(b.t_specific) AS is_same_sign,
        b.p_specific < 0.05 AS is_confirmed
    FROM efas_halves AS a
    JOIN efas_halves AS b USING (energy, gradient, category, layer, feature)
    WHERE a.half = 'A' AND b.half = 'B' AND gradient = 'decoder' AND category = 'all'
),
cells AS (
    SELECT * FROM pairs
    UNION ALL
    SELECT * REPLACE (NULL AS layer) FROM pairs
    WHERE (energy, layer) NOT IN (SELECT (energy, layer) FROM uncalibrated_layers)
),
ranked AS (
    SELECT
        *,
        rank() OVER (PARTITION BY energy, layer, is_common ORDER BY score_a) AS rank_a,
        rank() OVER (PARTITION BY energy, layer, is_common ORDER BY score_b) AS rank_b
    FROM cells
)
SELECT
    energy,
    is_control(energy) AS is_control,
    layer,
    count(*) FILTER (is_common) AS n_features,
    corr(rank_a, rank_b) FILTER (is_common) AS spearman,
    CASE WHEN n_features >= 10 THEN 1.96 / sqrt(n_features - 1) END AS spearman_noise,
    count(*) FILTER (is_found) AS n_found,
    count(*) FILTER (is_retested) AS n_retested,
    count(*) FILTER (is_retested AND is_same_sign) AS n_same_sign,
    count(*) FILTER (is_retested AND is_same_sign AND is_confirmed) AS n_confirmed,
    avg(abs(score_a)) FILTER (is_retested) AS selected_size,
    avg(score_b * sign(score_a)) FILTER (is_retested) AS replicated_size,
    replicated_size / nullif(selected_size, 0) AS replicated_share,
    var_samp(z_difference) / 2 AS z_variance,
    var_samp(z_null_difference) / 2 AS z_null_variance
FROM ranked
GROUP BY energy, layer
ORDER BY is_control, energy, layer NULLS LAST
