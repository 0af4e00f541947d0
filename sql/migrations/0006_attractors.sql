-- Attractors: decoder rows as memories, the fixed points that residuals fall to, and how that depends on β.

CREATE TABLE IF NOT EXISTS attractor_settings (
    run_id             INTEGER   NOT NULL,
    layer              SMALLINT  NOT NULL,
    dictionary         VARCHAR   NOT NULL,
    beta               DOUBLE    NOT NULL,
    target_perplexity  DOUBLE    NOT NULL,
    is_reached         BOOLEAN   NOT NULL,
    note               VARCHAR,
    n_memories         INTEGER   NOT NULL,
    n_tokens           INTEGER   NOT NULL,
    seed               BIGINT    NOT NULL,
    n_attractors       INTEGER   NOT NULL,
    entropy            DOUBLE    NOT NULL,
    largest_share      DOUBLE,
    perplexity_start   DOUBLE    NOT NULL,
    perplexity         DOUBLE    NOT NULL,
    unconverged_share  DOUBLE    NOT NULL,
    argmax_agreement   DOUBLE,
    created_at         TIMESTAMP NOT NULL
);
COMMENT ON TABLE  attractor_settings IS 'How a layer''s attractors were found, and the same for a random dictionary at its own β.';
COMMENT ON COLUMN attractor_settings.run_id IS 'Run.';
COMMENT ON COLUMN attractor_settings.layer IS 'Layer whose decoder rows are the memories.';
COMMENT ON COLUMN attractor_settings.dictionary IS 'decoder, or random: Gaussian directions, as many and as wide.';
COMMENT ON COLUMN attractor_settings.beta IS 'Inverse temperature, bisected to the target.';
COMMENT ON COLUMN attractor_settings.target_perplexity IS 'Median perplexity of softmax(β W z) at the fixed points that was asked for.';
COMMENT ON COLUMN attractor_settings.is_reached IS 'Whether it was reached within 5 %.';
COMMENT ON COLUMN attractor_settings.note IS 'Why not, in a sentence; NULL when it was.';
COMMENT ON COLUMN attractor_settings.n_memories IS 'Decoder rows of features that fire in the run.';
COMMENT ON COLUMN attractor_settings.n_tokens IS 'Tokens of the sample.';
COMMENT ON COLUMN attractor_settings.seed IS 'Of the sample and of the random dictionary.';
COMMENT ON COLUMN attractor_settings.n_attractors IS 'Fixed points of the sample, merged at a cosine above 0.99.';
COMMENT ON COLUMN attractor_settings.entropy IS 'Entropy of the basins'' sizes, in nats.';
COMMENT ON COLUMN attractor_settings.largest_share IS 'Share of the converged tokens in the largest basin.';
COMMENT ON COLUMN attractor_settings.perplexity_start IS 'Median perplexity at z0.';
COMMENT ON COLUMN attractor_settings.perplexity IS 'Median perplexity at the fixed points.';
COMMENT ON COLUMN attractor_settings.unconverged_share IS 'Share of tokens that had not settled after 1,000 steps.';
COMMENT ON COLUMN attractor_settings.argmax_agreement IS 'Share of the settled tokens whose fixed point is nearest to the decoder row that z0 is nearest to.';
COMMENT ON COLUMN attractor_settings.created_at IS 'UTC.';

CREATE TABLE IF NOT EXISTS attractor_sweeps (
    run_id            INTEGER  NOT NULL,
    layer             SMALLINT NOT NULL,
    dictionary        VARCHAR  NOT NULL,
    beta              DOUBLE   NOT NULL,
    n_attractors      INTEGER  NOT NULL,
    entropy           DOUBLE   NOT NULL,
    largest_share     DOUBLE,
    perplexity_start  DOUBLE   NOT NULL,
    perplexity        DOUBLE   NOT NULL,
    unconverged_share DOUBLE   NOT NULL,
    argmax_agreement  DOUBLE
);
COMMENT ON TABLE  attractor_sweeps IS 'Basins of a part of the sample at several β, from cells around single rows to one basin. Columns as in attractor_settings.';
COMMENT ON COLUMN attractor_sweeps.run_id IS 'Run.';
COMMENT ON COLUMN attractor_sweeps.layer IS 'Layer.';
COMMENT ON COLUMN attractor_sweeps.dictionary IS 'decoder or random.';
COMMENT ON COLUMN attractor_sweeps.beta IS 'Inverse temperature.';
COMMENT ON COLUMN attractor_sweeps.n_attractors IS 'Merged fixed points.';
COMMENT ON COLUMN attractor_sweeps.entropy IS 'Entropy of the basins'' sizes, in nats.';
COMMENT ON COLUMN attractor_sweeps.largest_share IS 'Share of the converged tokens in the largest basin.';
COMMENT ON COLUMN attractor_sweeps.perplexity_start IS 'Median perplexity at z0.';
COMMENT ON COLUMN attractor_sweeps.perplexity IS 'Median perplexity at the fixed points.';
COMMENT ON COLUMN attractor_sweeps.unconverged_share IS 'Share of tokens that had not settled.';
COMMENT ON COLUMN attractor_sweeps.argmax_agreement IS 'Share whose fixed point is nearest to the row that z0 is nearest to.';

CREATE TABLE IF NOT EXISTS attractors (
    run_id     INTEGER   NOT NULL,
    layer      SMALLINT  NOT NULL,
    attractor  INTEGER   NOT NULL,
    type       VARCHAR   NOT NULL,
    n_tokens   INTEGER   NOT NULL,
    perplexity DOUBLE    NOT NULL,
    energy     DOUBLE    NOT NULL,
    features   INTEGER[] NOT NULL,
    weights    FLOAT[]   NOT NULL,
    label      VARCHAR,
    label_lift DOUBLE,
    label_p    DOUBLE,
    label_q    DOUBLE,
    vector     FLOAT[]   NOT NULL
);
COMMENT ON TABLE  attractors IS 'Fixed points of the sample''s tokens, merged; the largest basin first.';
COMMENT ON COLUMN attractors.run_id IS 'Run.';
COMMENT ON COLUMN attractors.layer IS 'Layer.';
COMMENT ON COLUMN attractors.attractor IS 'Key within run and layer, from 0.';
COMMENT ON COLUMN attractors.type IS 'single pattern (perplexity below 1.5), metastable, or global: where the mean of all rows falls to.';
COMMENT ON COLUMN attractors.n_tokens IS 'Tokens of the sample in its basin.';
COMMENT ON COLUMN attractors.perplexity IS 'exp of the entropy of softmax(β W z): how many memories it is made of.';
COMMENT ON COLUMN attractors.energy IS 'E_H there, the Hopfield energy on unit vectors; not in nats.';
COMMENT ON COLUMN attractors.features IS 'Features of the largest weights in softmax(β W z), at most 5.';
COMMENT ON COLUMN attractors.weights IS 'Their weights.';
COMMENT ON COLUMN attractors.label IS 'The token that is most enriched in the basin among documents of half A, if half B confirms it; NULL otherwise.';
COMMENT ON COLUMN attractors.label_lift IS 'Share of that token in the basin over its share in the sample, in half B.';
COMMENT ON COLUMN attractors.label_p IS 'One-sided hypergeometric p of the token''s enrichment in half B, which had no part in its choice; NULL where there is too little to test.';
COMMENT ON COLUMN attractors.label_q IS 'Benjamini-Hochberg q over the layer''s attractors; a label needs q < 0.05.';
COMMENT ON COLUMN attractors.vector IS 'The fixed point, a unit vector.';

CREATE TABLE IF NOT EXISTS basins (
    run_id           INTEGER  NOT NULL,
    layer            SMALLINT NOT NULL,
    token_id         BIGINT   NOT NULL,
    attractor        INTEGER,
    steps            INTEGER  NOT NULL,
    cosine           FLOAT    NOT NULL,
    perplexity_start FLOAT    NOT NULL,
    perplexity       FLOAT    NOT NULL,
    energy_start     FLOAT    NOT NULL,
    energy           FLOAT    NOT NULL
);
COMMENT ON TABLE  basins IS 'Tokens of the sample and where they fall to.';
COMMENT ON COLUMN basins.run_id IS 'Run.';
COMMENT ON COLUMN basins.layer IS 'Layer.';
COMMENT ON COLUMN basins.token_id IS 'Token.';
COMMENT ON COLUMN basins.attractor IS 'Attractor; NULL where the token has not settled.';
COMMENT ON COLUMN basins.steps IS 'Steps taken.';
COMMENT ON COLUMN basins.cosine IS 'Cosine of z0 and the fixed point.';
COMMENT ON COLUMN basins.perplexity_start IS 'Perplexity at z0.';
COMMENT ON COLUMN basins.perplexity IS 'Perplexity at the fixed point.';
COMMENT ON COLUMN basins.energy_start IS 'E_H at z0.';
COMMENT ON COLUMN basins.energy IS 'E_H at the fixed point.';

CREATE TABLE IF NOT EXISTS attractor_descents (
    run_id INTEGER  NOT NULL,
    layer  SMALLINT NOT NULL,
    step   INTEGER  NOT NULL,
    q25    DOUBLE   NOT NULL,
    median DOUBLE   NOT NULL,
    q75    DOUBLE   NOT NULL
);
COMMENT ON TABLE  attractor_descents IS 'E_H along the way of the sample''s tokens: quartiles by step.';
COMMENT ON COLUMN attractor_descents.run_id IS 'Run.';
COMMENT ON COLUMN attractor_descents.layer IS 'Layer.';
COMMENT ON COLUMN attractor_descents.step IS 'Steps taken.';
COMMENT ON COLUMN attractor_descents.q25 IS 'First quartile of E_H.';
COMMENT ON COLUMN attractor_descents.median IS 'Median.';
COMMENT ON COLUMN attractor_descents.q75 IS 'Third quartile.';
