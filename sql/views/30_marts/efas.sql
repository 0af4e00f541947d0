-- Energy-feature alignment score of every feature of the current run, by energy, gradient and category.
CREATE OR REPLACE VIEW efas AS
SELECT
    run_id,
    model,
    layer,
    feature,
    energy,
    gradient,
    category,
    n_tokens,
    n_active,
    n_documents,
    score,
    score_active,
    score_within,
    ci_low,
    ci_high,
    z,
    p_value,
    q_value,
    z_null,
    attribution,
    attribution_low,
    attribution_high,
    attribution_curvature,
    role
FROM efas_scores
WHERE half = 'AB' AND run_id = (SELECT run_id FROM current_run);
COMMENT ON VIEW efas IS 'Energy-feature alignment score of every feature of the current run, by energy, gradient and category.';
COMMENT ON COLUMN efas.run_id IS 'Run.';
COMMENT ON COLUMN efas.model IS 'Model of the run.';
COMMENT ON COLUMN efas.layer IS 'Block whose output the feature reads.';
COMMENT ON COLUMN efas.feature IS 'Feature of that layer''s SAE, from 0.';
COMMENT ON COLUMN efas.energy IS 'Energy E: nll, logit_lens, tuned_lens, attention (nats) or hopfield (squared activation units, the positive control).';
COMMENT ON COLUMN efas.gradient IS 'decoder: g = minus the inner product of dE/dx and the decoder row. discrete: minus the derivative of E along the text.';
COMMENT ON COLUMN efas.category IS 'A category of documents, or all.';
COMMENT ON COLUMN efas.n_tokens IS 'Included tokens.';
COMMENT ON COLUMN efas.n_active IS 'Tokens at which the feature is active.';
COMMENT ON COLUMN efas.n_documents IS 'Documents with included tokens.';
COMMENT ON COLUMN efas.score IS 'EFAS: Pearson correlation of activation and g over included tokens, zeros counted. Above 0: where the feature is more active, adding more of it lowers E more than at an average token.';
COMMENT ON COLUMN efas.score_active IS 'The same over tokens at which the feature is active, from 3 of them: a dose slope.';
COMMENT ON COLUMN efas.score_within IS 'Correlation within contexts, with position effects taken out; what z tests.';
COMMENT ON COLUMN efas.ci_low IS 'Lower end of the 95 % interval of score across documents (not within contexts, as q is); NULL below 10 documents.';
COMMENT ON COLUMN efas.ci_high IS 'Upper end of that interval.';
COMMENT ON COLUMN efas.z IS 'Within-context test statistic; NULL below 50 active counted tokens, 10 contexts or 5 documents.';
COMMENT ON COLUMN efas.p_value IS 'Two-sided normal p of z.';
COMMENT ON COLUMN efas.q_value IS 'Benjamini-Hochberg q of p within run, energy, gradient, layer and category.';
COMMENT ON COLUMN efas.z_null IS 'The same statistic with another context''s gradient: the negative control, about standard normal.';
COMMENT ON COLUMN efas.attribution IS 'Sum of a g over included tokens: first-order prediction of the change of E when the feature is ablated (above 0: the model gets worse). NULL for discrete.';
COMMENT ON COLUMN efas.attribution_low IS 'Lower end of its 95 % interval across documents; NULL below 10 documents.';
COMMENT ON COLUMN efas.attribution_high IS 'Upper end of that interval.';
COMMENT ON COLUMN efas.attribution_curvature IS 'Attribution plus half the Gauss-Newton curvature, which grows with the size of the edit: predicts an ablation far better. NULL without ingest --probes.';
COMMENT ON COLUMN efas.role IS 'attractor when the interval of attribution lies above 0, repulsor when below; never taken from score.';
