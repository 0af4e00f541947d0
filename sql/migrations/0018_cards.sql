-- What a feature's card shows beside its scores: filled at finish, or by elw features build for a run of before.

CREATE TABLE IF NOT EXISTS feature_logits (
    run_id        INTEGER  NOT NULL,
    layer         SMALLINT NOT NULL,
    feature       INTEGER  NOT NULL,
    direction     VARCHAR  NOT NULL,
    place         SMALLINT NOT NULL,
    vocabulary_id INTEGER  NOT NULL,
    text          VARCHAR  NOT NULL,
    logit         FLOAT    NOT NULL
);
COMMENT ON TABLE  feature_logits IS 'Tokens whose logits a feature''s decoder row moves most by the direct path: l = c W_U (gain * d), d the decoder row (minus its mean, before a LayerNorm), gain that of the final norm, c the model''s logit scale, less the mean of l over the vocabulary, which softmax does not notice. The norm''s division by the residual''s size, later blocks and a cap on logits are left out. Features that fire at least once; no rows where decoder rows are not of the residual stream''s width.';
COMMENT ON COLUMN feature_logits.run_id IS 'Run.';
COMMENT ON COLUMN feature_logits.layer IS 'Layer.';
COMMENT ON COLUMN feature_logits.feature IS 'Feature.';
COMMENT ON COLUMN feature_logits.direction IS 'promoted: the largest l; suppressed: the smallest.';
COMMENT ON COLUMN feature_logits.place IS 'From 1, the strongest, to 10.';
COMMENT ON COLUMN feature_logits.vocabulary_id IS 'Id in the model''s vocabulary.';
COMMENT ON COLUMN feature_logits.text IS 'The token as text.';
COMMENT ON COLUMN feature_logits.logit IS 'l, logits per unit of activation and of the residual''s root mean square.';

CREATE TABLE IF NOT EXISTS logit_histogram (
    run_id  INTEGER   NOT NULL,
    layer   SMALLINT  NOT NULL,
    feature INTEGER   NOT NULL,
    low     FLOAT     NOT NULL,
    high    FLOAT     NOT NULL,
    counts  INTEGER[] NOT NULL
);
COMMENT ON TABLE  logit_histogram IS 'How l of feature_logits is distributed over the vocabulary, in 50 bins of equal width.';
COMMENT ON COLUMN logit_histogram.run_id IS 'Run.';
COMMENT ON COLUMN logit_histogram.layer IS 'Layer.';
COMMENT ON COLUMN logit_histogram.feature IS 'Feature.';
COMMENT ON COLUMN logit_histogram.low IS 'Lower edge of the first bin: the smallest l.';
COMMENT ON COLUMN logit_histogram.high IS 'Upper edge of the last bin: the largest l.';
COMMENT ON COLUMN logit_histogram.counts IS 'Tokens of the vocabulary in each bin; a value on an edge is in the upper bin.';

CREATE TABLE IF NOT EXISTS activation_histogram (
    run_id  INTEGER   NOT NULL,
    layer   SMALLINT  NOT NULL,
    feature INTEGER   NOT NULL,
    low     FLOAT     NOT NULL,
    high    FLOAT     NOT NULL,
    counts  INTEGER[] NOT NULL
);
COMMENT ON TABLE  activation_histogram IS 'How the activations of each feature that fires are distributed where they are not 0, in 50 bins of equal width.';
COMMENT ON COLUMN activation_histogram.run_id IS 'Run.';
COMMENT ON COLUMN activation_histogram.layer IS 'Layer.';
COMMENT ON COLUMN activation_histogram.feature IS 'Feature.';
COMMENT ON COLUMN activation_histogram.low IS 'Lower edge of the first bin: the smallest activation that is not 0.';
COMMENT ON COLUMN activation_histogram.high IS 'Upper edge of the last bin: the largest activation.';
COMMENT ON COLUMN activation_histogram.counts IS 'Included tokens in each bin; a value on an edge is in the upper bin.';

CREATE TABLE IF NOT EXISTS activation_intervals (
    run_id    INTEGER  NOT NULL,
    layer     SMALLINT NOT NULL,
    feature   INTEGER  NOT NULL,
    "interval" SMALLINT NOT NULL,
    low       FLOAT    NOT NULL,
    high      FLOAT    NOT NULL,
    n_tokens  BIGINT   NOT NULL,
    token_ids BIGINT[] NOT NULL
);
COMMENT ON TABLE  activation_intervals IS 'Examples of each feature that fires: the strongest, and of five intervals of equal width between 0 and its largest activation. Of a context, only one token of each kind.';
COMMENT ON COLUMN activation_intervals.run_id IS 'Run.';
COMMENT ON COLUMN activation_intervals.layer IS 'Layer.';
COMMENT ON COLUMN activation_intervals.feature IS 'Feature.';
COMMENT ON COLUMN activation_intervals."interval" IS '0: the strongest activations, at most 20. 1 to 5: those between (interval - 1) / 5 and interval / 5 of the largest, at most 5 of them, drawn by the run''s seed.';
COMMENT ON COLUMN activation_intervals.low IS 'Lower edge of the interval; of 0, the smallest activation that is told.';
COMMENT ON COLUMN activation_intervals.high IS 'Upper edge, which belongs to the next interval, but for the largest activation.';
COMMENT ON COLUMN activation_intervals.n_tokens IS 'Included tokens whose activation lies in it; of 0, all at which the feature is active.';
COMMENT ON COLUMN activation_intervals.token_ids IS 'Tokens of the examples, the strongest first; of equal ones the earlier.';

CREATE TABLE IF NOT EXISTS feature_neighbours (
    run_id    INTEGER  NOT NULL,
    layer     SMALLINT NOT NULL,
    feature   INTEGER  NOT NULL,
    measure   VARCHAR  NOT NULL,
    place     SMALLINT NOT NULL,
    neighbour INTEGER  NOT NULL,
    value     FLOAT    NOT NULL,
    n_both    INTEGER  NOT NULL
);
COMMENT ON TABLE  feature_neighbours IS 'Features of the same layer that are nearest to each, of those that fire at least once.';
COMMENT ON COLUMN feature_neighbours.run_id IS 'Run.';
COMMENT ON COLUMN feature_neighbours.layer IS 'Layer.';
COMMENT ON COLUMN feature_neighbours.feature IS 'Feature.';
COMMENT ON COLUMN feature_neighbours.measure IS 'decoder_cosine: cosine of the decoder rows. jaccard: tokens at which both are active over tokens at which either is. pmi: log2 of how many times as often both are active as if they were independent, from 5 tokens on at which both are.';
COMMENT ON COLUMN feature_neighbours.place IS 'From 1, the nearest, to 10.';
COMMENT ON COLUMN feature_neighbours.neighbour IS 'The other feature.';
COMMENT ON COLUMN feature_neighbours.value IS 'The measure; pmi in bits.';
COMMENT ON COLUMN feature_neighbours.n_both IS 'Included tokens at which both are active.';

CREATE TABLE IF NOT EXISTS feature_tokens (
    run_id          INTEGER  NOT NULL,
    layer           SMALLINT NOT NULL,
    feature         INTEGER  NOT NULL,
    place           SMALLINT NOT NULL,
    vocabulary_id   INTEGER  NOT NULL,
    text            VARCHAR  NOT NULL,
    n_active        BIGINT   NOT NULL,
    n_tokens        BIGINT   NOT NULL,
    mean_activation DOUBLE   NOT NULL
);
COMMENT ON TABLE  feature_tokens IS 'Tokens of the vocabulary that each feature fires on most often.';
COMMENT ON COLUMN feature_tokens.run_id IS 'Run.';
COMMENT ON COLUMN feature_tokens.layer IS 'Layer.';
COMMENT ON COLUMN feature_tokens.feature IS 'Feature.';
COMMENT ON COLUMN feature_tokens.place IS 'From 1, the most frequent, to 10; of equal ones, that with the larger activations.';
COMMENT ON COLUMN feature_tokens.vocabulary_id IS 'Id in the model''s vocabulary.';
COMMENT ON COLUMN feature_tokens.text IS 'The token as text.';
COMMENT ON COLUMN feature_tokens.n_active IS 'Included occurrences of the token at which the feature is active.';
COMMENT ON COLUMN feature_tokens.n_tokens IS 'Included occurrences of the token in all.';
COMMENT ON COLUMN feature_tokens.mean_activation IS 'Mean of a over those at which it is active.';
