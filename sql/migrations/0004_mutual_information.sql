-- Mutual information: the bins of activations, what the stream counts in them, and the joint histograms of a run.

CREATE TABLE IF NOT EXISTS activation_quartiles (
    run_id  INTEGER  NOT NULL,
    layer   SMALLINT NOT NULL,
    feature INTEGER  NOT NULL,
    q25     FLOAT    NOT NULL,
    q50     FLOAT    NOT NULL,
    q75     FLOAT    NOT NULL
);
COMMENT ON TABLE  activation_quartiles IS 'Quartiles of each feature''s active values as they came with its SAE, from its training; no row for a feature that hardly fired there, and none for an SAE without them. They bound the activation bins of mutual_information.';
COMMENT ON COLUMN activation_quartiles.run_id IS 'Run.';
COMMENT ON COLUMN activation_quartiles.layer IS 'Layer of the SAE.';
COMMENT ON COLUMN activation_quartiles.feature IS 'Feature.';
COMMENT ON COLUMN activation_quartiles.q25 IS 'First quartile, in the SAE''s own units.';
COMMENT ON COLUMN activation_quartiles.q50 IS 'Median.';
COMMENT ON COLUMN activation_quartiles.q75 IS 'Third quartile.';

CREATE TABLE IF NOT EXISTS feature_histograms (
    run_id         INTEGER   NOT NULL,
    group_id       INTEGER   NOT NULL,
    layer          SMALLINT  NOT NULL,
    feature        INTEGER   NOT NULL,
    energy         VARCHAR   NOT NULL,
    inactive       INTEGER[] NOT NULL,
    mates_active   INTEGER[] NOT NULL,
    mates_inactive INTEGER[] NOT NULL
);
COMMENT ON TABLE  feature_histograms IS 'Counts of one group by bins of activation and decoder gradient that cannot be taken again from stored tables; for features with quartiles. Appended, never updated.';
COMMENT ON COLUMN feature_histograms.run_id IS 'Run.';
COMMENT ON COLUMN feature_histograms.group_id IS 'Group.';
COMMENT ON COLUMN feature_histograms.layer IS 'Layer.';
COMMENT ON COLUMN feature_histograms.feature IS 'Feature.';
COMMENT ON COLUMN feature_histograms.energy IS 'Energy.';
COMMENT ON COLUMN feature_histograms.inactive IS 'Included tokens of sampled contexts at which the feature is inactive, by the 8 bins of g.';
COMMENT ON COLUMN feature_histograms.mates_active IS 'Active tokens of every context by the bin of a (1 to 4, outer) and that of the g of the row''s next context at the same position (1 to 8, inner): 32 counts, where both tokens are included.';
COMMENT ON COLUMN feature_histograms.mates_inactive IS 'The same pairs with the feature inactive, by the 8 bins of g, where the context that g is taken from is sampled.';

CREATE TABLE IF NOT EXISTS histogram_cells (
    run_id         INTEGER  NOT NULL,
    layer          SMALLINT NOT NULL,
    feature        INTEGER  NOT NULL,
    energy         VARCHAR  NOT NULL,
    category       VARCHAR  NOT NULL,
    n_tokens       BIGINT   NOT NULL,
    active         BIGINT[] NOT NULL,
    inactive       BIGINT[] NOT NULL,
    mates_tokens   BIGINT   NOT NULL,
    mates_active   BIGINT[] NOT NULL,
    mates_inactive BIGINT[] NOT NULL
);
COMMENT ON TABLE  histogram_cells IS 'Joint histograms of activation and decoder gradient over the groups that feature_statistics covers; filled at finish for features with quartiles, by category where the feature fires.';
COMMENT ON COLUMN histogram_cells.run_id IS 'Run.';
COMMENT ON COLUMN histogram_cells.layer IS 'Layer.';
COMMENT ON COLUMN histogram_cells.feature IS 'Feature.';
COMMENT ON COLUMN histogram_cells.energy IS 'Energy.';
COMMENT ON COLUMN histogram_cells.category IS 'A category of documents, or all.';
COMMENT ON COLUMN histogram_cells.n_tokens IS 'Included tokens.';
COMMENT ON COLUMN histogram_cells.active IS 'Active included tokens by the bin of a (1 to 4, outer) and of g (1 to 8, inner): 32 counts, from activations.';
COMMENT ON COLUMN histogram_cells.inactive IS 'Sum of feature_histograms.inactive.';
COMMENT ON COLUMN histogram_cells.mates_tokens IS 'Tokens that are included both in a context and at the same position of the row''s next one.';
COMMENT ON COLUMN histogram_cells.mates_active IS 'Sum of feature_histograms.mates_active.';
COMMENT ON COLUMN histogram_cells.mates_inactive IS 'Sum of feature_histograms.mates_inactive.';

COMMENT ON COLUMN runs.seed IS 'Seed of the document order, of the calibration sample and of the contexts in which inactive features'' gradients are binned.';
