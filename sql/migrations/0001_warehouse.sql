-- The warehouse's tables. Long form, FLOAT values, no indexes: activations sorted by (layer, feature, token_id)
-- compress and answer faster than any index would.

CREATE TABLE runs (
    run_id            INTEGER   NOT NULL,
    identity          VARCHAR   NOT NULL,
    is_current        BOOLEAN   NOT NULL,
    created_at        TIMESTAMP NOT NULL,
    updated_at        TIMESTAMP NOT NULL,
    model             VARCHAR   NOT NULL,
    model_sha256      VARCHAR   NOT NULL,
    tokenizer_sha256  VARCHAR   NOT NULL,
    vocabulary_size   INTEGER   NOT NULL,
    n_layers          INTEGER   NOT NULL,
    d_model           INTEGER   NOT NULL,
    context_length    INTEGER   NOT NULL,
    segment_contexts  INTEGER   NOT NULL,
    layers            INTEGER[] NOT NULL,
    energies          VARCHAR[] NOT NULL,
    dtype             VARCHAR   NOT NULL,
    seed              BIGINT    NOT NULL,
    store_gradients   BOOLEAN   NOT NULL,
    settings          VARCHAR   NOT NULL,
    elw_version       VARCHAR   NOT NULL,
    stats_groups      INTEGER   NOT NULL,
    stats_tokens      BIGINT    NOT NULL
);
COMMENT ON TABLE  runs IS 'One row per run: everything that its numbers depend on. Two runs never mix.';
COMMENT ON COLUMN runs.run_id IS 'Key of the run in this file, from 1.';
COMMENT ON COLUMN runs.identity IS 'sha256 of settings; an ingest with equal settings continues the run.';
COMMENT ON COLUMN runs.is_current IS 'The run that efas, features and the other public views show; changed by ingest and by elw runs --use.';
COMMENT ON COLUMN runs.created_at IS 'UTC.';
COMMENT ON COLUMN runs.updated_at IS 'UTC time of the last commit to this run.';
COMMENT ON COLUMN runs.model IS 'Name of the model as it was given.';
COMMENT ON COLUMN runs.model_sha256 IS 'sha256 of the model weights as they were distributed.';
COMMENT ON COLUMN runs.tokenizer_sha256 IS 'sha256 of the tokenizer''s definition.';
COMMENT ON COLUMN runs.vocabulary_size IS 'Entries of the unembedding.';
COMMENT ON COLUMN runs.n_layers IS 'Blocks of the model.';
COMMENT ON COLUMN runs.d_model IS 'Width of the residual stream.';
COMMENT ON COLUMN runs.context_length IS 'T, tokens in a full context; token_id = context_id * T + position.';
COMMENT ON COLUMN runs.segment_contexts IS 'Consecutive contexts of one document in a lane of the plan.';
COMMENT ON COLUMN runs.layers IS 'Hooked layers: the residual stream after these blocks.';
COMMENT ON COLUMN runs.energies IS 'Energies of this run.';
COMMENT ON COLUMN runs.dtype IS 'Precision of the model''s forward and backward pass.';
COMMENT ON COLUMN runs.seed IS 'Seed of the document order and of the calibration sample.';
COMMENT ON COLUMN runs.store_gradients IS 'Whether gradients.vector is filled.';
COMMENT ON COLUMN runs.settings IS 'JSON of all that the identity covers.';
COMMENT ON COLUMN runs.elw_version IS 'Version of the program that began the run.';
COMMENT ON COLUMN runs.stats_groups IS 'Groups that feature_statistics covers.';
COMMENT ON COLUMN runs.stats_tokens IS 'Tokens that feature_statistics covers; less than were ingested while a run is under way.';

CREATE TABLE models (
    model_sha256     VARCHAR NOT NULL,
    name             VARCHAR NOT NULL,
    architecture     VARCHAR NOT NULL,
    n_layers         INTEGER NOT NULL,
    d_model          INTEGER NOT NULL,
    vocabulary_size  INTEGER NOT NULL,
    n_parameters     BIGINT  NOT NULL
);
COMMENT ON TABLE  models IS 'Models that runs of this warehouse used.';
COMMENT ON COLUMN models.model_sha256 IS 'sha256 of the weights as they were distributed.';
COMMENT ON COLUMN models.name IS 'Name as it was given at first use.';
COMMENT ON COLUMN models.architecture IS 'Class of the loaded model.';
COMMENT ON COLUMN models.n_layers IS 'Blocks.';
COMMENT ON COLUMN models.d_model IS 'Width of the residual stream.';
COMMENT ON COLUMN models.vocabulary_size IS 'Entries of the unembedding.';
COMMENT ON COLUMN models.n_parameters IS 'Parameters, tied ones counted once.';

CREATE TABLE saes (
    run_id       INTEGER NOT NULL,
    layer        INTEGER NOT NULL,
    sae_sha256   VARCHAR NOT NULL,
    source       VARCHAR NOT NULL,
    architecture VARCHAR NOT NULL,
    d_sae        INTEGER NOT NULL,
    k            INTEGER,
    norm_median  DOUBLE  NOT NULL,
    l0           DOUBLE,
    fvu          DOUBLE,
    cosine       DOUBLE,
    dead_share   DOUBLE,
    metadata     VARCHAR NOT NULL
);
COMMENT ON TABLE  saes IS 'The sparse autoencoder of each hooked layer of a run.';
COMMENT ON COLUMN saes.run_id IS 'Run.';
COMMENT ON COLUMN saes.layer IS 'Block whose output the SAE reads.';
COMMENT ON COLUMN saes.sae_sha256 IS 'sha256 of its weights and of the settings they are used with.';
COMMENT ON COLUMN saes.source IS 'Folder it was loaded from, or shipped/… for one that came with the package.';
COMMENT ON COLUMN saes.architecture IS 'Activation rule: topk.';
COMMENT ON COLUMN saes.d_sae IS 'Features.';
COMMENT ON COLUMN saes.k IS 'Active features per token, for topk.';
COMMENT ON COLUMN saes.norm_median IS 'Median norm of the residual over its training tokens; ten times it marks a massive activation.';
COMMENT ON COLUMN saes.l0 IS 'Mean number of active features per held-out token.';
COMMENT ON COLUMN saes.fvu IS 'Fraction of variance unexplained on held-out documents: sum |x - x̂|^2 / sum |x - mean x|^2.';
COMMENT ON COLUMN saes.cosine IS 'Mean cosine of x and its reconstruction on held-out documents.';
COMMENT ON COLUMN saes.dead_share IS 'Share of features that never fire on the held-out tokens.';
COMMENT ON COLUMN saes.metadata IS 'JSON of what else is stored with the SAE.';

CREATE TABLE documents (
    run_id           INTEGER NOT NULL,
    document_id      INTEGER NOT NULL,
    path             VARCHAR NOT NULL,
    category         VARCHAR NOT NULL,
    half             VARCHAR NOT NULL,
    sha256           VARCHAR NOT NULL,
    source           VARCHAR NOT NULL,
    n_bytes          BIGINT  NOT NULL,
    n_tokens         INTEGER NOT NULL,
    n_contexts       INTEGER NOT NULL,
    n_dropped_tokens INTEGER NOT NULL
);
COMMENT ON TABLE  documents IS 'Distinct texts of a run''s corpus.';
COMMENT ON COLUMN documents.run_id IS 'Run.';
COMMENT ON COLUMN documents.document_id IS 'Key within the run, from 0.';
COMMENT ON COLUMN documents.path IS 'Path below the given root; the smallest where files have equal content.';
COMMENT ON COLUMN documents.category IS 'First folder below the given path, else that path''s own name.';
COMMENT ON COLUMN documents.half IS 'A or B: a category of at least 8 documents is split in two for replication; a smaller one is all A.';
COMMENT ON COLUMN documents.sha256 IS 'sha256 of the file.';
COMMENT ON COLUMN documents.source IS 'Where the file was when it was planned.';
COMMENT ON COLUMN documents.n_bytes IS 'Size of the file.';
COMMENT ON COLUMN documents.n_tokens IS 'Tokens of the document, dropped ones included.';
COMMENT ON COLUMN documents.n_contexts IS 'Contexts that are planned.';
COMMENT ON COLUMN documents.n_dropped_tokens IS 'Tokens of a tail of fewer than 16 (or of a document of fewer than 3), which are dropped.';

CREATE TABLE document_aliases (
    run_id      INTEGER NOT NULL,
    document_id INTEGER NOT NULL,
    path        VARCHAR NOT NULL
);
COMMENT ON TABLE  document_aliases IS 'Further paths whose files have the same content as a document.';
COMMENT ON COLUMN document_aliases.run_id IS 'Run.';
COMMENT ON COLUMN document_aliases.document_id IS 'Document.';
COMMENT ON COLUMN document_aliases.path IS 'Path below the given root.';

CREATE TABLE contexts (
    run_id        INTEGER NOT NULL,
    context_id    INTEGER NOT NULL,
    document_id   INTEGER NOT NULL,
    context_index INTEGER NOT NULL,
    first_token   INTEGER NOT NULL,
    n_tokens      INTEGER NOT NULL
);
COMMENT ON TABLE  contexts IS 'Windows of a document that go through the model on their own.';
COMMENT ON COLUMN contexts.run_id IS 'Run.';
COMMENT ON COLUMN contexts.context_id IS 'Key within the run, from 0, consecutive within a document.';
COMMENT ON COLUMN contexts.document_id IS 'Document.';
COMMENT ON COLUMN contexts.context_index IS 'Place within the document, from 0.';
COMMENT ON COLUMN contexts.first_token IS 'Offset in the document''s tokens.';
COMMENT ON COLUMN contexts.n_tokens IS 'Tokens: T, or fewer for a tail.';

CREATE TABLE plan (
    run_id     INTEGER NOT NULL,
    context_id INTEGER NOT NULL,
    group_id   INTEGER NOT NULL,
    row        INTEGER NOT NULL,
    lane       INTEGER NOT NULL
);
COMMENT ON TABLE  plan IS 'Where each context is processed. A row holds contexts of different documents: each other''s mates.';
COMMENT ON COLUMN plan.run_id IS 'Run.';
COMMENT ON COLUMN plan.context_id IS 'Context.';
COMMENT ON COLUMN plan.group_id IS 'Group: one transaction, of one category and one half.';
COMMENT ON COLUMN plan.row IS 'Row of the group.';
COMMENT ON COLUMN plan.lane IS 'Lane of the row.';

CREATE TABLE plan_groups (
    run_id       INTEGER NOT NULL,
    group_id     INTEGER NOT NULL,
    category     VARCHAR NOT NULL,
    half         VARCHAR NOT NULL,
    n_contexts   INTEGER NOT NULL,
    n_tokens     INTEGER NOT NULL,
    committed_at TIMESTAMP
);
COMMENT ON TABLE  plan_groups IS 'Groups in the order in which they are processed.';
COMMENT ON COLUMN plan_groups.run_id IS 'Run.';
COMMENT ON COLUMN plan_groups.group_id IS 'Key within the run, from 0.';
COMMENT ON COLUMN plan_groups.category IS 'Category of all its documents.';
COMMENT ON COLUMN plan_groups.half IS 'Half of all its documents.';
COMMENT ON COLUMN plan_groups.n_contexts IS 'Contexts.';
COMMENT ON COLUMN plan_groups.n_tokens IS 'Tokens.';
COMMENT ON COLUMN plan_groups.committed_at IS 'UTC time of the transaction that stored the group; NULL while it is only planned.';

CREATE TABLE tokens (
    run_id        INTEGER  NOT NULL,
    token_id      BIGINT   NOT NULL,
    position      SMALLINT NOT NULL,
    vocabulary_id INTEGER  NOT NULL,
    text          VARCHAR  NOT NULL,
    class         VARCHAR
);
COMMENT ON TABLE  tokens IS 'Tokens of the committed groups.';
COMMENT ON COLUMN tokens.run_id IS 'Run.';
COMMENT ON COLUMN tokens.token_id IS 'context_id * context_length + position.';
COMMENT ON COLUMN tokens.position IS 'Place within the context, from 0.';
COMMENT ON COLUMN tokens.vocabulary_id IS 'Id in the model''s vocabulary.';
COMMENT ON COLUMN tokens.text IS 'The token decoded on its own; � where it is part of a character.';
COMMENT ON COLUMN tokens.class IS 'Concept class by rules on the text; NULL until classes are assigned.';

CREATE TABLE token_layers (
    run_id   INTEGER  NOT NULL,
    token_id BIGINT   NOT NULL,
    layer    SMALLINT NOT NULL,
    norm     FLOAT    NOT NULL,
    included BOOLEAN  NOT NULL,
    reason   VARCHAR,
    counted  BOOLEAN  NOT NULL
);
COMMENT ON TABLE  token_layers IS 'Per token and hooked layer: its norm and whether statistics include it.';
COMMENT ON COLUMN token_layers.run_id IS 'Run.';
COMMENT ON COLUMN token_layers.token_id IS 'Token.';
COMMENT ON COLUMN token_layers.layer IS 'Block after which the residual is read.';
COMMENT ON COLUMN token_layers.norm IS 'Norm of the residual, in residual units.';
COMMENT ON COLUMN token_layers.included IS 'Whether the token enters statistics.';
COMMENT ON COLUMN token_layers.reason IS 'Why not: first token, massive norm, special token, no next token; NULL when included.';
COMMENT ON COLUMN token_layers.counted IS 'Whether the within-context test counts it: included, with at least 3 mates included at its position.';

CREATE TABLE energies (
    run_id   INTEGER NOT NULL,
    token_id BIGINT  NOT NULL,
    layer    SMALLINT,
    energy   VARCHAR NOT NULL,
    value    FLOAT   NOT NULL
);
COMMENT ON TABLE  energies IS 'Energy of each token: for nll of every token with a next one, for the others of included tokens.';
COMMENT ON COLUMN energies.run_id IS 'Run.';
COMMENT ON COLUMN energies.token_id IS 'Token.';
COMMENT ON COLUMN energies.layer IS 'Layer at which the energy is read; NULL for nll, the model''s own output.';
COMMENT ON COLUMN energies.energy IS 'nll (nats) or hopfield (squared activation units).';
COMMENT ON COLUMN energies.value IS 'Energy, in the units of its kind.';

CREATE TABLE gradients (
    run_id   INTEGER  NOT NULL,
    token_id BIGINT   NOT NULL,
    layer    SMALLINT NOT NULL,
    energy   VARCHAR  NOT NULL,
    norm     FLOAT    NOT NULL,
    discrete FLOAT,
    vector   FLOAT[]
);
COMMENT ON TABLE  gradients IS 'Energy gradients of included tokens.';
COMMENT ON COLUMN gradients.run_id IS 'Run.';
COMMENT ON COLUMN gradients.token_id IS 'Token.';
COMMENT ON COLUMN gradients.layer IS 'Layer of the residual x.';
COMMENT ON COLUMN gradients.energy IS 'Energy E.';
COMMENT ON COLUMN gradients.norm IS 'Norm of dE/dx.';
COMMENT ON COLUMN gradients.discrete IS 'Minus the derivative of E along the text (numpy.gradient, unit spacing), not dE/dx; the same at every layer for nll; NULL where fewer than two tokens are in line.';
COMMENT ON COLUMN gradients.vector IS 'dE/dx, with ingest --store-gradients; else NULL.';

CREATE TABLE document_gradients (
    run_id       INTEGER  NOT NULL,
    group_id     INTEGER  NOT NULL,
    document_id  INTEGER  NOT NULL,
    layer        SMALLINT NOT NULL,
    energy       VARCHAR  NOT NULL,
    n_tokens     INTEGER  NOT NULL,
    gradient_sum DOUBLE[] NOT NULL
);
COMMENT ON TABLE  document_gradients IS 'Sum of dE/dx over a document''s included tokens of a group; its product with a decoder row is the document''s sum of decoder gradients.';
COMMENT ON COLUMN document_gradients.run_id IS 'Run.';
COMMENT ON COLUMN document_gradients.group_id IS 'Group.';
COMMENT ON COLUMN document_gradients.document_id IS 'Document.';
COMMENT ON COLUMN document_gradients.layer IS 'Layer.';
COMMENT ON COLUMN document_gradients.energy IS 'Energy.';
COMMENT ON COLUMN document_gradients.n_tokens IS 'Included tokens.';
COMMENT ON COLUMN document_gradients.gradient_sum IS 'Sum of dE/dx, d_model numbers.';

CREATE TABLE activations (
    run_id     INTEGER  NOT NULL,
    layer      SMALLINT NOT NULL,
    feature    INTEGER  NOT NULL,
    token_id   BIGINT   NOT NULL,
    activation FLOAT    NOT NULL,
    g_nll      FLOAT,
    g_hopfield FLOAT
);
COMMENT ON TABLE  activations IS 'Features active at included tokens, with their decoder gradients. Sorted by layer, feature, token within a group.';
COMMENT ON COLUMN activations.run_id IS 'Run.';
COMMENT ON COLUMN activations.layer IS 'Layer of the SAE.';
COMMENT ON COLUMN activations.feature IS 'Feature, from 0.';
COMMENT ON COLUMN activations.token_id IS 'Token.';
COMMENT ON COLUMN activations.activation IS 'a > 0, in the SAE''s own units.';
COMMENT ON COLUMN activations.g_nll IS 'Minus the inner product of d(nll)/dx and the feature''s decoder row: nats that one unit more would save, to first order.';
COMMENT ON COLUMN activations.g_hopfield IS 'The same for the hopfield energy.';

CREATE TABLE feature_moments (
    run_id     INTEGER  NOT NULL,
    group_id   INTEGER  NOT NULL,
    layer      SMALLINT NOT NULL,
    feature    INTEGER  NOT NULL,
    energy     VARCHAR  NOT NULL,
    sum_g      DOUBLE   NOT NULL,
    sum_g2     DOUBLE   NOT NULL,
    sum_gc2    DOUBLE   NOT NULL,
    n_contexts INTEGER  NOT NULL,
    n_counted  INTEGER  NOT NULL,
    sum_s      DOUBLE   NOT NULL,
    sum_s2     DOUBLE   NOT NULL,
    null_s     DOUBLE   NOT NULL,
    null_s2    DOUBLE   NOT NULL,
    sum_a2h2   DOUBLE
);
COMMENT ON TABLE  feature_moments IS 'Sums over one group that cannot be computed again from stored tables, since inactive features'' gradients are never formed. Appended, never updated.';
COMMENT ON COLUMN feature_moments.run_id IS 'Run.';
COMMENT ON COLUMN feature_moments.group_id IS 'Group.';
COMMENT ON COLUMN feature_moments.layer IS 'Layer.';
COMMENT ON COLUMN feature_moments.feature IS 'Feature.';
COMMENT ON COLUMN feature_moments.energy IS 'Energy.';
COMMENT ON COLUMN feature_moments.sum_g IS 'Sum of the decoder gradient g over included tokens.';
COMMENT ON COLUMN feature_moments.sum_g2 IS 'Sum of g^2 over included tokens.';
COMMENT ON COLUMN feature_moments.sum_gc2 IS 'Sum over counted tokens of g centred by its context and by its mates, squared.';
COMMENT ON COLUMN feature_moments.n_contexts IS 'Contexts in which the feature is active at a counted token.';
COMMENT ON COLUMN feature_moments.n_counted IS 'Counted tokens at which the feature is active.';
COMMENT ON COLUMN feature_moments.sum_s IS 'Sum over contexts of S_c = sum of a times centred g.';
COMMENT ON COLUMN feature_moments.sum_s2 IS 'Sum over contexts of S_c^2.';
COMMENT ON COLUMN feature_moments.null_s IS 'The same as sum_s with the gradient of the row''s next context: the run''s negative control.';
COMMENT ON COLUMN feature_moments.null_s2 IS 'The same as sum_s2 for the negative control.';
COMMENT ON COLUMN feature_moments.sum_a2h2 IS 'Sum of a^2 h^2 over active tokens with h a probe''s decoder gradient; NULL without probes.';

CREATE TABLE feature_statistics (
    run_id         INTEGER  NOT NULL,
    layer          SMALLINT NOT NULL,
    feature        INTEGER  NOT NULL,
    energy         VARCHAR  NOT NULL,
    gradient       VARCHAR  NOT NULL,
    category       VARCHAR  NOT NULL,
    half           VARCHAR  NOT NULL,
    n_tokens       BIGINT   NOT NULL,
    n_active       BIGINT   NOT NULL,
    n_documents    INTEGER  NOT NULL,
    sum_a          DOUBLE   NOT NULL,
    sum_a2         DOUBLE   NOT NULL,
    sum_g          DOUBLE   NOT NULL,
    sum_g2         DOUBLE   NOT NULL,
    sum_ag         DOUBLE   NOT NULL,
    active_g       DOUBLE   NOT NULL,
    active_g2      DOUBLE   NOT NULL,
    sum_u2         DOUBLE,
    sum_v2         DOUBLE,
    t_quantile     DOUBLE,
    n_counted      BIGINT,
    n_counted_contexts  INTEGER,
    n_counted_documents INTEGER,
    sum_ac2        DOUBLE,
    sum_gc2        DOUBLE,
    sum_s          DOUBLE,
    sum_s2         DOUBLE,
    null_s         DOUBLE,
    null_s2        DOUBLE,
    p_value        DOUBLE,
    q_value        DOUBLE,
    sum_a2h2       DOUBLE
);
COMMENT ON TABLE  feature_statistics IS 'Sums over a run that efas turns into scores, intervals and tests. Rows of features that never fire exist for category all only.';
COMMENT ON COLUMN feature_statistics.run_id IS 'Run.';
COMMENT ON COLUMN feature_statistics.layer IS 'Layer.';
COMMENT ON COLUMN feature_statistics.feature IS 'Feature.';
COMMENT ON COLUMN feature_statistics.energy IS 'Energy.';
COMMENT ON COLUMN feature_statistics.gradient IS 'decoder (g differs by feature) or discrete (the derivative along the text).';
COMMENT ON COLUMN feature_statistics.category IS 'A category of documents, or all.';
COMMENT ON COLUMN feature_statistics.half IS 'A or B, or AB for both halves together.';
COMMENT ON COLUMN feature_statistics.n_tokens IS 'Included tokens (for discrete: those with a value).';
COMMENT ON COLUMN feature_statistics.n_active IS 'Of these, tokens at which the feature is active.';
COMMENT ON COLUMN feature_statistics.n_documents IS 'Documents with included tokens.';
COMMENT ON COLUMN feature_statistics.sum_a IS 'Sum of the activation a.';
COMMENT ON COLUMN feature_statistics.sum_a2 IS 'Sum of a^2.';
COMMENT ON COLUMN feature_statistics.sum_g IS 'Sum of the gradient g.';
COMMENT ON COLUMN feature_statistics.sum_g2 IS 'Sum of g^2.';
COMMENT ON COLUMN feature_statistics.sum_ag IS 'Sum of a g.';
COMMENT ON COLUMN feature_statistics.active_g IS 'Sum of g over active tokens.';
COMMENT ON COLUMN feature_statistics.active_g2 IS 'Sum of g^2 over active tokens.';
COMMENT ON COLUMN feature_statistics.sum_u2 IS 'Sum over documents of U_d^2, the document''s share of the covariance; NULL below 10 documents.';
COMMENT ON COLUMN feature_statistics.sum_v2 IS 'Sum over documents of (V_d - mean V)^2, V_d the document''s sum of a g; NULL below 10 documents.';
COMMENT ON COLUMN feature_statistics.t_quantile IS '97.5 % quantile of Student''s t with n_documents - 1 degrees of freedom.';
COMMENT ON COLUMN feature_statistics.n_counted IS 'Active tokens that the within-context test counts.';
COMMENT ON COLUMN feature_statistics.n_counted_contexts IS 'Contexts of these tokens.';
COMMENT ON COLUMN feature_statistics.n_counted_documents IS 'Documents of these tokens.';
COMMENT ON COLUMN feature_statistics.sum_ac2 IS 'Sum over counted tokens of a centred by its context, squared.';
COMMENT ON COLUMN feature_statistics.sum_gc2 IS 'Sum over counted tokens of g centred by its context and mates, squared.';
COMMENT ON COLUMN feature_statistics.sum_s IS 'Sum over contexts of S_c.';
COMMENT ON COLUMN feature_statistics.sum_s2 IS 'Sum over contexts of S_c^2.';
COMMENT ON COLUMN feature_statistics.null_s IS 'sum_s of the negative control.';
COMMENT ON COLUMN feature_statistics.null_s2 IS 'sum_s2 of the negative control.';
COMMENT ON COLUMN feature_statistics.p_value IS 'Two-sided normal p of z; NULL below 50 counted tokens, 10 contexts or 5 documents.';
COMMENT ON COLUMN feature_statistics.q_value IS 'Benjamini-Hochberg q within run, layer, energy, gradient, category and half.';
COMMENT ON COLUMN feature_statistics.sum_a2h2 IS 'Sum of a^2 h^2 of the curvature probes; NULL without probes.';

CREATE TABLE calibration (
    run_id  INTEGER  NOT NULL,
    layer   SMALLINT NOT NULL,
    feature INTEGER  NOT NULL,
    energy  VARCHAR  NOT NULL,
    g_mean  DOUBLE   NOT NULL,
    g_sd    DOUBLE   NOT NULL
);
COMMENT ON TABLE  calibration IS 'Mean and spread of each feature''s decoder gradient over a seeded sample of about 4,096 tokens, drawn before the first group and never changed: edges of the mutual-information bins.';
COMMENT ON COLUMN calibration.run_id IS 'Run.';
COMMENT ON COLUMN calibration.layer IS 'Layer.';
COMMENT ON COLUMN calibration.feature IS 'Feature.';
COMMENT ON COLUMN calibration.energy IS 'Energy.';
COMMENT ON COLUMN calibration.g_mean IS 'Mean of g.';
COMMENT ON COLUMN calibration.g_sd IS 'Standard deviation of g.';
