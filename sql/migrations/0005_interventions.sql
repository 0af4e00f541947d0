-- Interventions: what was asked, on which contexts, and by patch what was measured beside what was predicted.

CREATE TABLE IF NOT EXISTS intervention_settings (
    run_id          INTEGER   NOT NULL,
    intervention_id INTEGER   NOT NULL,
    identity        VARCHAR   NOT NULL,
    layer           SMALLINT  NOT NULL,
    kind            VARCHAR   NOT NULL,
    value           DOUBLE,
    edited          VARCHAR   NOT NULL,
    features        VARCHAR[] NOT NULL,
    dtype           VARCHAR   NOT NULL,
    seed            BIGINT    NOT NULL,
    n_contexts      INTEGER   NOT NULL,
    n_probes        INTEGER   NOT NULL,
    n_directions    INTEGER   NOT NULL,
    path_points     INTEGER   NOT NULL,
    hessian         BOOLEAN   NOT NULL,
    elw_version     VARCHAR   NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    finished_at     TIMESTAMP
);
COMMENT ON TABLE  intervention_settings IS 'One row per intervention: a kind of edit of features of one layer, and how it was measured.';
COMMENT ON COLUMN intervention_settings.run_id IS 'Run.';
COMMENT ON COLUMN intervention_settings.intervention_id IS 'Key within the run, from 1.';
COMMENT ON COLUMN intervention_settings.identity IS 'sha256 of all that the numbers depend on; the same command continues the same intervention.';
COMMENT ON COLUMN intervention_settings.layer IS 'Layer whose features are edited.';
COMMENT ON COLUMN intervention_settings.kind IS 'ablate, scale, clamp or add: what the edit makes of an activation.';
COMMENT ON COLUMN intervention_settings.value IS 'Its value; NULL for ablate.';
COMMENT ON COLUMN intervention_settings.edited IS 'active: included tokens at which the feature is active are edited; all: all included tokens.';
COMMENT ON COLUMN intervention_settings.features IS 'The choice of features as it was asked for, such as top:50 or 15:656.';
COMMENT ON COLUMN intervention_settings.dtype IS 'Precision of the passes, which need not be that of the run.';
COMMENT ON COLUMN intervention_settings.seed IS 'Of the contexts, the random features, directions and probes.';
COMMENT ON COLUMN intervention_settings.n_contexts IS 'Contexts, the same ones for every feature.';
COMMENT ON COLUMN intervention_settings.n_probes IS 'Curvature probes of each kind.';
COMMENT ON COLUMN intervention_settings.n_directions IS 'Random directions measured beside each feature.';
COMMENT ON COLUMN intervention_settings.path_points IS 'Points of the integrated gradients along each patch''s own path; 0: none.';
COMMENT ON COLUMN intervention_settings.hessian IS 'Whether the Hessian-vector product of each patch was taken.';
COMMENT ON COLUMN intervention_settings.elw_version IS 'Version of the program that began it.';
COMMENT ON COLUMN intervention_settings.created_at IS 'UTC.';
COMMENT ON COLUMN intervention_settings.finished_at IS 'UTC time at which its statistics were computed; NULL while it is under way.';

CREATE TABLE IF NOT EXISTS intervention_features (
    run_id          INTEGER NOT NULL,
    intervention_id INTEGER NOT NULL,
    feature         INTEGER NOT NULL,
    chosen_by       VARCHAR NOT NULL,
    n_active        BIGINT  NOT NULL,
    note            VARCHAR
);
COMMENT ON TABLE  intervention_features IS 'Features of an intervention.';
COMMENT ON COLUMN intervention_features.run_id IS 'Run.';
COMMENT ON COLUMN intervention_features.intervention_id IS 'Intervention.';
COMMENT ON COLUMN intervention_features.feature IS 'Feature of the intervention''s layer.';
COMMENT ON COLUMN intervention_features.chosen_by IS 'top, random, listed or class.';
COMMENT ON COLUMN intervention_features.n_active IS 'Active tokens in the run.';
COMMENT ON COLUMN intervention_features.note IS 'Why there is no effect to show: the feature never fires in the run, or in the contexts; NULL otherwise.';

CREATE TABLE IF NOT EXISTS intervention_contexts (
    run_id          INTEGER NOT NULL,
    intervention_id INTEGER NOT NULL,
    batch           INTEGER NOT NULL,
    context_id      INTEGER NOT NULL,
    measured_at     TIMESTAMP
);
COMMENT ON TABLE  intervention_contexts IS 'Contexts of an intervention: a seeded sample of the run''s, in turn from each category and half.';
COMMENT ON COLUMN intervention_contexts.run_id IS 'Run.';
COMMENT ON COLUMN intervention_contexts.intervention_id IS 'Intervention.';
COMMENT ON COLUMN intervention_contexts.batch IS 'Contexts of a batch are measured in one transaction.';
COMMENT ON COLUMN intervention_contexts.context_id IS 'Context.';
COMMENT ON COLUMN intervention_contexts.measured_at IS 'UTC; NULL while it is only planned.';

CREATE TABLE IF NOT EXISTS interventions (
    run_id                INTEGER NOT NULL,
    intervention_id       INTEGER NOT NULL,
    feature               INTEGER NOT NULL,
    direction             INTEGER NOT NULL,
    context_id            INTEGER NOT NULL,
    n_edited              INTEGER NOT NULL,
    n_later               INTEGER NOT NULL,
    sum_change            DOUBLE  NOT NULL,
    sum_change2           DOUBLE  NOT NULL,
    delta_edited          DOUBLE,
    delta_later           DOUBLE,
    kl_edited             DOUBLE,
    kl_later              DOUBLE,
    top_changed_edited    INTEGER,
    top_changed_later     INTEGER,
    first_order           DOUBLE,
    norm_curvature        DOUBLE,
    aligned_scale         DOUBLE,
    aligned_share         DOUBLE,
    blended_gradient      DOUBLE,
    blended_scale         DOUBLE,
    blended_share         DOUBLE,
    curvature             DOUBLE,
    curvature_context     DOUBLE,
    labels                DOUBLE,
    labels_context        DOUBLE,
    empirical_fisher      DOUBLE,
    integrated            DOUBLE,
    change_times_gradient DOUBLE,
    hessian               DOUBLE,
    own_path              DOUBLE,
    failure               VARCHAR
);
COMMENT ON TABLE  interventions IS 'One row per patch, a feature or a random direction in one context: the measured change of the model''s loss, and predictions of their sum.';
COMMENT ON COLUMN interventions.run_id IS 'Run.';
COMMENT ON COLUMN interventions.intervention_id IS 'Intervention.';
COMMENT ON COLUMN interventions.feature IS 'Feature whose activation is edited.';
COMMENT ON COLUMN interventions.direction IS '0: along its decoder row. From 1: the same numbers along a random direction of the same norm, the control.';
COMMENT ON COLUMN interventions.context_id IS 'Context.';
COMMENT ON COLUMN interventions.n_edited IS 'Edited tokens.';
COMMENT ON COLUMN interventions.n_later IS 'Tokens with a next one that come after the first edited one and are not edited.';
COMMENT ON COLUMN interventions.sum_change IS 'Sum of a'' - a over edited tokens, token scales included.';
COMMENT ON COLUMN interventions.sum_change2 IS 'Sum of its square.';
COMMENT ON COLUMN interventions.delta_edited IS 'Measured change of the loss summed over edited tokens, in nats; above 0 the model got worse. NULL after a failure.';
COMMENT ON COLUMN interventions.delta_later IS 'The same over the later tokens.';
COMMENT ON COLUMN interventions.kl_edited IS 'KL divergence of the patched next-token distribution from the model''s own, summed over edited tokens, in nats.';
COMMENT ON COLUMN interventions.kl_later IS 'The same over the later tokens.';
COMMENT ON COLUMN interventions.top_changed_edited IS 'Edited tokens at which the likeliest next token is another one.';
COMMENT ON COLUMN interventions.top_changed_later IS 'The same among the later tokens.';
COMMENT ON COLUMN interventions.first_order IS 'Predicted delta_edited + delta_later: inner product of the gradient and the edit (attribution patching).';
COMMENT ON COLUMN interventions.norm_curvature IS 'As curvature, each token''s term times exp(2 |edit| / |x|); NULL without probes.';
COMMENT ON COLUMN interventions.aligned_scale IS 'Half the sum of squared edits times squared lengths of the probes'' gradients, growing with the edit: what the prediction aligned multiplies by the feature''s share.';
COMMENT ON COLUMN interventions.aligned_share IS 'Sum over edited tokens of the share of the probes'' squared gradients that lies along the direction.';
COMMENT ON COLUMN interventions.blended_gradient IS 'As first_order, with the mean of two gradients: the model''s and that where a third of what all features add is taken away; for ablations.';
COMMENT ON COLUMN interventions.blended_scale IS 'aligned_scale with one probe less.';
COMMENT ON COLUMN interventions.blended_share IS 'aligned_share with one probe less.';
COMMENT ON COLUMN interventions.curvature IS 'first_order plus half the Gauss-Newton curvature by random signs, token by token; NULL without probes.';
COMMENT ON COLUMN interventions.curvature_context IS 'The same with the probe''s products summed over the context before squaring.';
COMMENT ON COLUMN interventions.labels IS 'As curvature, with labels sampled from the model instead of signs (Fisher information).';
COMMENT ON COLUMN interventions.labels_context IS 'As curvature_context, with sampled labels.';
COMMENT ON COLUMN interventions.empirical_fisher IS 'Half the square of first_order.';
COMMENT ON COLUMN interventions.integrated IS 'Integrated gradients, all features taken away together; for ablations, NULL otherwise.';
COMMENT ON COLUMN interventions.change_times_gradient IS 'Sum over edited tokens of the absolute terms of first_order.';
COMMENT ON COLUMN interventions.hessian IS 'first_order plus half the exact second derivative along the edit; NULL unless asked for.';
COMMENT ON COLUMN interventions.own_path IS 'Integrated gradients along this patch''s own path; NULL unless asked for.';
COMMENT ON COLUMN interventions.failure IS 'Why nothing was measured: the patch gave numbers that are not finite. NULL otherwise.';

CREATE TABLE IF NOT EXISTS effect_statistics (
    run_id          INTEGER NOT NULL,
    intervention_id INTEGER NOT NULL,
    feature         INTEGER NOT NULL,
    direction       INTEGER NOT NULL,
    category        VARCHAR NOT NULL,
    delta_low       DOUBLE,
    delta_high      DOUBLE
);
COMMENT ON TABLE  effect_statistics IS 'Bootstrap intervals of effects over documents; intervention_effects shows them.';
COMMENT ON COLUMN effect_statistics.run_id IS 'Run.';
COMMENT ON COLUMN effect_statistics.intervention_id IS 'Intervention.';
COMMENT ON COLUMN effect_statistics.feature IS 'Feature.';
COMMENT ON COLUMN effect_statistics.direction IS '0: decoder row; from 1: random direction.';
COMMENT ON COLUMN effect_statistics.category IS 'A category of documents, or all.';
COMMENT ON COLUMN effect_statistics.delta_low IS 'Lower end of the 95 % interval of delta_per_token; NULL with fewer than 5 documents.';
COMMENT ON COLUMN effect_statistics.delta_high IS 'Upper end.';

CREATE TABLE IF NOT EXISTS predictor_statistics (
    run_id          INTEGER NOT NULL,
    intervention_id INTEGER NOT NULL,
    validation      VARCHAR NOT NULL,
    target          VARCHAR NOT NULL,
    predictor       VARCHAR NOT NULL,
    backward_passes INTEGER,
    n_features      INTEGER NOT NULL,
    spearman        DOUBLE,
    spearman_low    DOUBLE,
    spearman_high   DOUBLE,
    pearson         DOUBLE,
    pearson_low     DOUBLE,
    pearson_high    DOUBLE
);
COMMENT ON TABLE  predictor_statistics IS 'How well each score predicts the measured effect of an intervention, over its features; predictor_validation shows the current run''s.';
COMMENT ON COLUMN predictor_statistics.run_id IS 'Run.';
COMMENT ON COLUMN predictor_statistics.intervention_id IS 'Intervention.';
COMMENT ON COLUMN predictor_statistics.validation IS 'same: predicted and measured on the same tokens. transfer: predicted on the documents of half A, measured on those of half B.';
COMMENT ON COLUMN predictor_statistics.target IS 'sum: of delta over tokens. per_token: delta over edited tokens. partial: of sums, given n_edited and sum_change2, in ranks.';
COMMENT ON COLUMN predictor_statistics.predictor IS 'A column of interventions, a score of efas or mutual_information, or random; measured is the effect itself on the other half of the documents: the ceiling of transfer.';
COMMENT ON COLUMN predictor_statistics.backward_passes IS 'Backward passes over a context that serve all features at once; NULL where each patch needs its own.';
COMMENT ON COLUMN predictor_statistics.n_features IS 'Features.';
COMMENT ON COLUMN predictor_statistics.spearman IS 'Rank correlation over features of prediction and measurement.';
COMMENT ON COLUMN predictor_statistics.spearman_low IS 'Lower end of its 95 % interval: bootstrap over documents and features.';
COMMENT ON COLUMN predictor_statistics.spearman_high IS 'Upper end.';
COMMENT ON COLUMN predictor_statistics.pearson IS 'Pearson correlation; NULL for partial.';
COMMENT ON COLUMN predictor_statistics.pearson_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN predictor_statistics.pearson_high IS 'Upper end.';

COMMENT ON COLUMN feature_moments.sum_a2h2 IS 'Sum over active tokens of a^2 h^2 exp(2 a |d| / |x|), the mean of the curvature probes, h a probe''s decoder gradient; NULL without probes and for other energies than nll.';
COMMENT ON COLUMN feature_statistics.sum_a2h2 IS 'Sum of the groups'' sum_a2h2; NULL without probes.';
