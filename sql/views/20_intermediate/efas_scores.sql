-- Scores, intervals and tests as algebra on the moments; every run, category and half. The columns of efas, efas_all
-- and efas_halves are these, and so are their comments.
CREATE OR REPLACE VIEW efas_scores AS
WITH scored AS (
    SELECT
        *,
        sqrt(variance_a * variance_g) AS scale,
        sqrt(active_variance_a * active_variance_g) AS active_scale,
        sqrt(sum_ac2 * sum_gc2) AS within_scale,
        -- Of tokens that are nearly alike rounding alone may give more than 1.
        CASE WHEN scale > 0 THEN greatest(-1, least(1, covariance / scale)) END AS r,
        i_quantile * cluster_factor * sqrt(sum_i2) / (1 - r * r) AS z_margin,
        t_quantile * cluster_factor * sqrt(sum_u2) / n_tokens / scale AS covariance_margin,
        t_quantile * cluster_factor * sqrt(sum_v2) AS attribution_margin,
        gradient = 'decoder' AS is_decoder,
        p_value IS NOT NULL AS is_tested
    FROM efas_moments
)
SELECT
    run_id,
    model,
    layer,
    feature,
    energy,
    gradient,
    category,
    half,
    n_tokens,
    n_active,
    n_documents,
    r AS score,
    CASE WHEN active_scale > 0 THEN greatest(-1, least(1, active_covariance / active_scale)) END AS score_active,
    CASE WHEN within_scale > 0 THEN greatest(-1, least(1, sum_s / within_scale)) END AS score_within,
    -- On the scale of Fisher's transformation, so that it stays between -1 and 1; statistics of before version 3 have
    -- that of a covariance.
    CASE WHEN abs(r) < 1 THEN coalesce(tanh(atanh(r) - z_margin), r - covariance_margin) END AS ci_low,
    CASE WHEN abs(r) < 1 THEN coalesce(tanh(atanh(r) + z_margin), r + covariance_margin) END AS ci_high,
    cosine,
    t_specific,
    p_specific,
    q_specific,
    p_reference,
    CASE WHEN is_tested AND sum_s2 > 0 THEN sum_s / sqrt(sum_s2) END AS z,
    p_value,
    q_value,
    CASE WHEN is_tested AND null_s2 > 0 THEN null_s / sqrt(null_s2) END AS z_null,
    CASE WHEN is_tested AND sum_sd2 > 0 AND p_documents IS NOT NULL THEN sum_s / sqrt(sum_sd2) END AS z_documents,
    p_documents,
    q_documents,
    CASE WHEN is_decoder THEN sum_ag END AS attribution,
    CASE WHEN is_decoder THEN sum_ag - attribution_margin END AS attribution_low,
    CASE WHEN is_decoder THEN sum_ag + attribution_margin END AS attribution_high,
    CASE WHEN is_decoder THEN sum_ag + sum_a2h2 / 2 END AS attribution_curvature,
    CASE WHEN is_decoder THEN q_attribution END AS q_attribution,
    CASE
        WHEN is_decoder AND q_attribution < 0.05 THEN
            CASE WHEN coalesce(attribution_curvature, attribution) > 0 THEN 'supports' ELSE 'opposes' END
    END AS role
FROM scored;
COMMENT ON VIEW efas_scores IS 'EFAS of every run, category and half; efas, efas_all and efas_halves are its parts.';
COMMENT ON COLUMN efas_scores.run_id IS 'Run.';
COMMENT ON COLUMN efas_scores.model IS 'Model of the run.';
COMMENT ON COLUMN efas_scores.layer IS 'Block whose output the feature reads.';
COMMENT ON COLUMN efas_scores.feature IS 'Feature of that layer''s SAE, from 0.';
COMMENT ON COLUMN efas_scores.energy IS 'Energy E, such as nll, the model''s loss, or hopfield, the positive control; run_energies says what each is.';
COMMENT ON COLUMN efas_scores.gradient IS 'decoder: g = minus the inner product of dE/dx and the decoder row. discrete: minus the derivative of E along the text.';
COMMENT ON COLUMN efas_scores.category IS 'A category of documents, or all.';
COMMENT ON COLUMN efas_scores.half IS 'A or B: half of the documents of each category.';
COMMENT ON COLUMN efas_scores.n_tokens IS 'Included tokens.';
COMMENT ON COLUMN efas_scores.n_active IS 'Tokens at which the feature is active.';
COMMENT ON COLUMN efas_scores.n_documents IS 'Documents with included tokens.';
COMMENT ON COLUMN efas_scores.score IS 'EFAS: Pearson correlation of activation and g over included tokens, zeros counted. Above 0: where the feature is more active, adding more of it lowers E more than at an average token.';
COMMENT ON COLUMN efas_scores.score_active IS 'The same over tokens at which the feature is active, from 3 of them: a dose slope.';
COMMENT ON COLUMN efas_scores.score_within IS 'Correlation within contexts, with position effects taken out; what z tests.';
COMMENT ON COLUMN efas_scores.ci_low IS 'Lower end of the 95 % interval of score across documents (not within contexts, as q is); NULL below 10 documents, or where a few hold most of the tokens.';
COMMENT ON COLUMN efas_scores.ci_high IS 'Upper end of that interval.';
COMMENT ON COLUMN efas_scores.cosine IS 'How well the feature''s direction fits: cosine of m = minus the sum over counted tokens of a times the gradient centred in its context and by its mates, with the decoder row. The size of m is known to 9 %.';
COMMENT ON COLUMN efas_scores.t_specific IS 'Is it this direction? Size of m along the decoder row over the root mean square of its sizes along other decoder rows (reference_rows), each relative to that of the gradient along the row. NULL as z is.';
COMMENT ON COLUMN efas_scores.p_specific IS 'Two-sided p of t_specific, from Student''s t with as many degrees of freedom as other reference rows (64 or 63).';
COMMENT ON COLUMN efas_scores.q_specific IS 'Benjamini-Hochberg q of p_specific within run, energy, layer and category: the test that alignments, report and README rest on.';
COMMENT ON COLUMN efas_scores.p_reference IS 'The same p with a reference row in place of the feature''s own: a control, below 0.05 for about 5 % of features.';
COMMENT ON COLUMN efas_scores.z IS 'Within-context test statistic: is the gradient out of the ordinary where the feature fires, in these documents? Other directions than the feature''s are rejected nearly as often. NULL below 50 active counted tokens, 10 contexts or 5 documents.';
COMMENT ON COLUMN efas_scores.p_value IS 'Two-sided normal p of z.';
COMMENT ON COLUMN efas_scores.q_value IS 'Benjamini-Hochberg q of p within run, energy, gradient, layer and category.';
COMMENT ON COLUMN efas_scores.z_null IS 'The same statistic with another context''s gradient: the negative control, about standard normal.';
COMMENT ON COLUMN efas_scores.z_documents IS 'The same with documents in place of contexts as what is drawn: would it hold in other documents? It cannot exceed the root of their number. NULL as z is, and below 10 documents in which the feature counts.';
COMMENT ON COLUMN efas_scores.p_documents IS 'Two-sided p of the t test that the documents'' sums have mean 0.';
COMMENT ON COLUMN efas_scores.q_documents IS 'Benjamini-Hochberg q of p_documents within run, energy, gradient, layer and category.';
COMMENT ON COLUMN efas_scores.attribution IS 'Sum of a g over included tokens: first-order prediction of the change of E when the feature is ablated (above 0: the model gets worse). NULL for discrete.';
COMMENT ON COLUMN efas_scores.attribution_low IS 'Lower end of its 95 % interval across documents; NULL below 10 documents.';
COMMENT ON COLUMN efas_scores.attribution_high IS 'Upper end of that interval.';
COMMENT ON COLUMN efas_scores.attribution_curvature IS 'Attribution plus half the Gauss-Newton curvature, which grows with the size of the edit: predicts an ablation far better. NULL without ingest --probes.';
COMMENT ON COLUMN efas_scores.q_attribution IS 'Benjamini-Hochberg q, across documents, that attribution_curvature is 0 (attribution where there are no probes), within run, energy, layer and category.';
COMMENT ON COLUMN efas_scores.role IS 'What ablating the feature is predicted to do where q_attribution < 0.05: supports (it raises E) or opposes (it lowers E). Never taken from score.';
