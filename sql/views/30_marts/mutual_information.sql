-- Mutual information of activation and decoder gradient in bits, for every row of efas; current run.
-- columns as in: efas
CREATE OR REPLACE VIEW mutual_information AS
WITH estimated AS (
    SELECT
        run_id,
        layer,
        feature,
        energy,
        category,
        information_bits(joint, activation_marginal(joint), gradient_marginal(joint), n_tokens) AS mi,
        information_bits(
            mates_joint, activation_marginal(mates_joint), gradient_marginal(mates_joint), mates_tokens
        ) AS mi_mates
    FROM joint_distributions
)
SELECT
    s.run_id,
    r.model,
    s.layer,
    s.feature,
    s.energy,
    s.category,
    s.n_tokens,
    s.n_active,
    e.mi,
    e.mi_mates,
    e.mi - e.mi_mates AS mi_excess
FROM feature_statistics AS s
JOIN current_run AS r USING (run_id)
LEFT JOIN estimated AS e USING (run_id, layer, feature, energy, category)
WHERE s.gradient = 'decoder' AND s.half = 'AB';
COMMENT ON VIEW mutual_information IS 'Mutual information between a feature''s activation (inactive, or one of 4 bins) and its decoder gradient (8 bins) over included tokens, in bits; what the binning makes of unrelated contexts beside it. Current run; rows as in efas.';
COMMENT ON COLUMN mutual_information.mi IS 'Bits, by the definition in docs/definitions.md, with the correction of Miller and Madow, hence below 0 at times; NULL for a feature without quartiles.';
COMMENT ON COLUMN mutual_information.mi_mates IS 'The same with the g of another document''s context at the same position: what bias and all that depends on the position alone come to; in category all also what categories alone tell, since the other document is of the same category and half. NULL where no row of the plan holds two contexts.';
COMMENT ON COLUMN mutual_information.mi_excess IS 'mi - mi_mates: about 0 where activation and gradient have nothing to do with each other within a category; negative values are kept.';
