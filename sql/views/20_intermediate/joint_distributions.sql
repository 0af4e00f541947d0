-- Joint distribution of binned activation and gradient by run, layer, energy, category and feature: its own and the
-- mates'. Active cells are counted over all tokens. Inactive tokens are spread over the gradient's bins as those of the
-- sampled contexts are, and weighted by the exact share of inactive tokens; NULL without tokens, or with inactive
-- tokens of which none is sampled.
-- columns as in: histogram_cells
CREATE OR REPLACE MACRO sampled_weight(n, n_active, n_sampled) AS
    CASE WHEN n > 0 AND n = n_active THEN 0.0 WHEN n > 0 AND n_sampled > 0 THEN (n - n_active) / (n * n_sampled) END;
COMMENT ON MACRO sampled_weight IS 'sampled_weight(n, n_active, n_sampled): probability that one of n_sampled inactive tokens stands for, when n_active of n tokens are active.';

CREATE OR REPLACE VIEW joint_distributions AS
WITH weighted AS (
    SELECT
        *,
        sampled_weight(n_tokens, list_sum(active), list_sum(inactive)) AS weight,
        sampled_weight(mates_tokens, list_sum(mates_active), list_sum(mates_inactive)) AS mates_weight
    FROM histogram_cells
)
SELECT
    run_id,
    layer,
    feature,
    energy,
    category,
    n_tokens,
    mates_tokens,
    CASE WHEN weight IS NOT NULL THEN
        list_concat(
            list_transform(inactive, lambda k: k * weight), list_transform(active, lambda k: k / n_tokens)
        )
    END AS joint,
    CASE WHEN mates_weight IS NOT NULL THEN
        list_concat(
            list_transform(mates_inactive, lambda k: k * mates_weight),
            list_transform(mates_active, lambda k: k / mates_tokens)
        )
    END AS mates_joint
FROM weighted;
COMMENT ON VIEW joint_distributions IS 'Joint distribution of activation and decoder gradient in the bins of histogram_bins, for features with quartiles.';
COMMENT ON COLUMN joint_distributions.joint IS '5 x 8 probabilities: bins of a (0 inactive, 1 to 4 by its quartiles; outer) and of g (1 to 8; inner).';
COMMENT ON COLUMN joint_distributions.mates_joint IS 'The same with the g of the row''s next context at the same position.';
