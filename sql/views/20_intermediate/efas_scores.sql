-- Scores, intervals and tests as algebra on the moments; every run, category and half. The columns of efas, efas_all
-- and efas_halves are these, and so are their comments.
CREATE OR REPLACE VIEW efas_scores AS
WITH scored AS (
    SELECT
        *,
        sqrt(variance_a * variance_g) AS scale,
        sqrt(active_variance_a * active_variance_g) AS active_scale,
        sqrt(sum_ac2 * sum_gc2) AS within_scale,
        t_quantile * cluster_factor * sqrt(sum_u2) / n_tokens AS covariance_margin,
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
    CASE WHEN scale > 0 THEN covariance / scale END AS score,
    CASE WHEN active_scale > 0 THEN active_covariance / active_scale END AS score_active,
    CASE WHEN within_scale > 0 THEN sum_s / within_scale END AS score_within,
    CASE WHEN scale > 0 THEN (covariance - covariance_margin) / scale END AS ci_low,
    CASE WHEN scale > 0 THEN (covariance + covariance_margin) / scale END AS ci_high,
    CASE WHEN is_tested AND sum_s2 > 0 THEN sum_s / sqrt(sum_s2) END AS z,
    p_value,
    q_value,
    CASE WHEN is_tested AND null_s2 > 0 THEN null_s / sqrt(null_s2) END AS z_null,
    CASE WHEN is_decoder THEN sum_ag END AS attribution,
    CASE WHEN is_decoder THEN sum_ag - attribution_margin END AS attribution_low,
    CASE WHEN is_decoder THEN sum_ag + attribution_margin END AS attribution_high,
    CASE WHEN is_decoder THEN sum_ag + sum_a2h2 / 2 END AS attribution_curvature,
    CASE
        WHEN is_decoder AND sum_ag - attribution_margin > 0 THEN 'attractor'
        WHEN is_decoder AND sum_ag + attribution_margin < 0 THEN 'repulsor'
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
COMMENT ON COLUMN efas_scores.ci_low IS 'Lower end of the 95 % interval of score across documents (not within contexts, as q is); NULL below 10 documents.';
COMMENT ON COLUMN efas_scores.ci_high IS 'Upper end of that interval.';
COMMENT ON COLUMN efas_scores.z IS 'Within-context test statistic; NULL below 50 active counted tokens, 10 contexts or 5 documents.';
COMMENT ON COLUMN efas_scores.p_value IS 'Two-sided normal p of z.';
COMMENT ON COLUMN efas_scores.q_value IS 'Benjamini-Hochberg q of p within run, energy, gradient, layer and category.';
COMMENT ON COLUMN efas_scores.z_null IS 'The same statistic with another context''s gradient: the negative control, about standard normal.';
COMMENT ON COLUMN efas_scores.attribution IS 'Sum of a g over included tokens: first-order prediction of the change of E when the feature is ablated (above 0: the model gets worse). NULL for discrete.';
COMMENT ON COLUMN efas_scores.attribution_low IS 'Lower end of its 95 % interval across documents; NULL below 10 documents.';
COMMENT ON COLUMN efas_scores.attribution_high IS 'Upper end of that interval.';
COMMENT ON COLUMN efas_scores.attribution_curvature IS 'Attribution plus half the Gauss-Newton curvature, which grows with the size of the edit: predicts an ablation far better. NULL without ingest --probes.';
COMMENT ON COLUMN efas_scores.role IS 'attractor when the interval of attribution lies above 0, repulsor when below; never taken from score.';
