-- How features of each concept class go with the loss, and what editing them did.
CREATE OR REPLACE VIEW alignment_by_class AS
WITH effects AS (
    SELECT layer, feature, avg(delta_per_token) AS shift, avg(kl_per_token) AS kl
    FROM intervention_effects
    WHERE direction = 0 AND category = 'all' AND kind = 'ablate'
    GROUP BY ALL
),
classed AS (
    SELECT
        f.layer,
        f.feature,
        f.class,
        f.n_active,
        e.score,
        e.q_specific,
        x.shift,
        x.kl
    FROM features AS f
    LEFT JOIN efas AS e
        ON e.layer = f.layer AND e.feature = f.feature AND e.energy = 'nll' AND e.gradient = 'decoder'
        AND e.category = 'all'
    LEFT JOIN effects AS x ON x.layer = f.layer AND x.feature = f.feature
    WHERE f.class IS NOT NULL
),
control AS (
    SELECT layer, class, count(*) AS n_by_other_labels
    FROM feature_classes
    WHERE run_id = (SELECT run_id FROM current_run) AND labels = 'mates' AND is_assigned
    GROUP BY GROUPING SETS ((layer, class), (class))
)
SELECT
    c.layer,
    c.class,
    count(*) AS n_features,
    count(*) / sum(count(*)) OVER (PARTITION BY c.layer) AS share_of_features,
    any_value(k.n_by_other_labels) AS n_by_other_labels,
    median(c.n_active) AS median_active,
    avg(c.score) AS mean_efas,
    avg(abs(c.score)) AS mean_abs_efas,
    count(*) FILTER (c.q_specific < 0.05) AS n_significant,
    count(c.shift) AS n_ablated,
    avg(c.shift) AS mean_shift,
    avg(c.kl) AS mean_kl
FROM classed AS c
LEFT JOIN control AS k ON k.layer IS NOT DISTINCT FROM c.layer AND k.class = c.class
GROUP BY GROUPING SETS ((c.layer, c.class), (c.class));
COMMENT ON VIEW alignment_by_class IS 'Features of the current run by concept class and layer (NULL: all layers), with mean nll scores and what ablations that were measured did.';
COMMENT ON COLUMN alignment_by_class.layer IS 'Layer; NULL for all.';
COMMENT ON COLUMN alignment_by_class.class IS 'Concept class, or general; features with too little to test are left out.';
COMMENT ON COLUMN alignment_by_class.n_features IS 'Features.';
COMMENT ON COLUMN alignment_by_class.share_of_features IS 'Their share of the layer''s tested features.';
COMMENT ON COLUMN alignment_by_class.n_by_other_labels IS 'Features that the same rule would put into the class with another document''s labels: the negative control.';
COMMENT ON COLUMN alignment_by_class.median_active IS 'Median number of active tokens.';
COMMENT ON COLUMN alignment_by_class.mean_efas IS 'Mean nll score, decoder gradient, all categories.';
COMMENT ON COLUMN alignment_by_class.mean_abs_efas IS 'Mean of its absolute value.';
COMMENT ON COLUMN alignment_by_class.n_significant IS 'Features with q_specific < 0.05 for nll: the gradient points along their own direction.';
COMMENT ON COLUMN alignment_by_class.n_ablated IS 'Features whose ablation was measured (elw intervene).';
COMMENT ON COLUMN alignment_by_class.mean_shift IS 'Mean measured change of the loss per edited token when one of them is ablated, in nats; NULL where none was.';
COMMENT ON COLUMN alignment_by_class.mean_kl IS 'Mean KL divergence per edited token, in nats.';
