-- An energy transformer's own landscape: where tokens settle on it, and what single features do to that.

CREATE TABLE IF NOT EXISTS native_settings (
    run_id            INTEGER   NOT NULL,
    weights           VARCHAR   NOT NULL,
    n_contexts        INTEGER   NOT NULL,
    n_tokens          INTEGER   NOT NULL,
    seed              BIGINT    NOT NULL,
    n_attractors      INTEGER   NOT NULL,
    entropy           DOUBLE    NOT NULL,
    largest_share     DOUBLE,
    unconverged_share DOUBLE    NOT NULL,
    steps             DOUBLE    NOT NULL,
    cosine            DOUBLE    NOT NULL,
    energy_start      DOUBLE    NOT NULL,
    energy            DOUBLE    NOT NULL,
    block_steps       INTEGER   NOT NULL,
    block_turn        DOUBLE    NOT NULL,
    block_agreement   DOUBLE,
    created_at        TIMESTAMP NOT NULL
);
COMMENT ON TABLE  native_settings IS 'How tokens behind an energy transformer''s last step settle on its own landscape, and the same for untrained weights.';
COMMENT ON COLUMN native_settings.run_id IS 'Run.';
COMMENT ON COLUMN native_settings.weights IS 'trained: the run''s model; random: a model of its configuration, not trained.';
COMMENT ON COLUMN native_settings.n_contexts IS 'Contexts of the sample.';
COMMENT ON COLUMN native_settings.n_tokens IS 'Tokens of the sample: those of its contexts that are included at the last hooked layer.';
COMMENT ON COLUMN native_settings.seed IS 'Of the sample, the random weights, the features and the directions.';
COMMENT ON COLUMN native_settings.n_attractors IS 'Settled directions of the sample, merged at a cosine above 0.99.';
COMMENT ON COLUMN native_settings.entropy IS 'Entropy of the basins'' sizes, in nats.';
COMMENT ON COLUMN native_settings.largest_share IS 'Share of the settled tokens in the largest basin.';
COMMENT ON COLUMN native_settings.unconverged_share IS 'Share of tokens that still moved after 500 updates.';
COMMENT ON COLUMN native_settings.steps IS 'Median number of updates until a token settled.';
COMMENT ON COLUMN native_settings.cosine IS 'Median cosine of a token behind the last step and where it settles.';
COMMENT ON COLUMN native_settings.energy_start IS 'Mean E_t behind the last step, by that step''s gain, in the model''s own units.';
COMMENT ON COLUMN native_settings.energy IS 'Mean E_t where tokens settle.';
COMMENT ON COLUMN native_settings.block_steps IS 'Further steps of the model that were made for block_turn and block_agreement.';
COMMENT ON COLUMN native_settings.block_turn IS 'Median angle by which the last of these turns a token, in radians; settled tokens do not turn.';
COMMENT ON COLUMN native_settings.block_agreement IS 'Share of tokens that settle in the same place (cosine above 0.99) when these steps are made first, of those that settle both ways.';
COMMENT ON COLUMN native_settings.created_at IS 'UTC.';

CREATE TABLE IF NOT EXISTS native_attractors (
    run_id     INTEGER NOT NULL,
    weights    VARCHAR NOT NULL,
    attractor  INTEGER NOT NULL,
    n_tokens   INTEGER NOT NULL,
    n_distinct INTEGER NOT NULL,
    label      VARCHAR,
    label_lift DOUBLE,
    label_p    DOUBLE,
    label_q    DOUBLE,
    says       VARCHAR[] NOT NULL,
    vector     FLOAT[] NOT NULL
);
COMMENT ON TABLE  native_attractors IS 'Where tokens settle on an energy transformer''s own landscape, merged; the largest basin first.';
COMMENT ON COLUMN native_attractors.run_id IS 'Run.';
COMMENT ON COLUMN native_attractors.weights IS 'trained or random.';
COMMENT ON COLUMN native_attractors.attractor IS 'Key within run and weights, from 0.';
COMMENT ON COLUMN native_attractors.n_tokens IS 'Tokens of the sample in its basin.';
COMMENT ON COLUMN native_attractors.n_distinct IS 'Entries of the vocabulary that these are.';
COMMENT ON COLUMN native_attractors.label IS 'The token that is most enriched in the basin among documents of half A, if half B confirms it; NULL otherwise.';
COMMENT ON COLUMN native_attractors.label_lift IS 'Share of that token in the basin over its share in the sample, in half B.';
COMMENT ON COLUMN native_attractors.label_p IS 'One-sided hypergeometric p of the token''s enrichment in half B; NULL where there is too little to test.';
COMMENT ON COLUMN native_attractors.label_q IS 'Benjamini-Hochberg q over the attractors; a label needs q < 0.05.';
COMMENT ON COLUMN native_attractors.says IS 'The likeliest next tokens by the model''s last norm and unembedding there, at most 5.';
COMMENT ON COLUMN native_attractors.vector IS 'The settled direction, a unit vector.';

CREATE TABLE IF NOT EXISTS native_basins (
    run_id        INTEGER NOT NULL,
    weights       VARCHAR NOT NULL,
    token_id      BIGINT  NOT NULL,
    vocabulary_id INTEGER NOT NULL,
    category      VARCHAR NOT NULL,
    attractor     INTEGER,
    steps         INTEGER NOT NULL,
    cosine        FLOAT   NOT NULL,
    energy_start  FLOAT   NOT NULL,
    energy        FLOAT   NOT NULL
);
COMMENT ON TABLE  native_basins IS 'Tokens of the sample and where they settle on an energy transformer''s own landscape.';
COMMENT ON COLUMN native_basins.run_id IS 'Run.';
COMMENT ON COLUMN native_basins.weights IS 'trained or random.';
COMMENT ON COLUMN native_basins.token_id IS 'Token.';
COMMENT ON COLUMN native_basins.vocabulary_id IS 'Its entry of the vocabulary; kept here because native_agreement would read all tokens for it.';
COMMENT ON COLUMN native_basins.category IS 'Category of its document.';
COMMENT ON COLUMN native_basins.attractor IS 'Attractor; NULL where the token has not settled.';
COMMENT ON COLUMN native_basins.steps IS 'Updates made.';
COMMENT ON COLUMN native_basins.cosine IS 'Cosine of x behind the last step and where it settles.';
COMMENT ON COLUMN native_basins.energy_start IS 'E_t behind the last step, by that step''s gain, in the model''s own units.';
COMMENT ON COLUMN native_basins.energy IS 'E_t where it settles, its keys then those of settled tokens.';

CREATE TABLE IF NOT EXISTS native_patches (
    run_id         INTEGER  NOT NULL,
    layer          SMALLINT NOT NULL,
    feature        INTEGER  NOT NULL,
    token_id       BIGINT   NOT NULL,
    kind           VARCHAR  NOT NULL,
    direction      VARCHAR  NOT NULL,
    activation     DOUBLE   NOT NULL,
    delta_energy   DOUBLE   NOT NULL,
    fall           DOUBLE   NOT NULL,
    fall_patched   DOUBLE   NOT NULL,
    is_settled     BOOLEAN  NOT NULL,
    is_changed     BOOLEAN  NOT NULL,
    distance       DOUBLE   NOT NULL,
    delta_settled  DOUBLE   NOT NULL
);
COMMENT ON TABLE  native_patches IS 'One row per feature, token, kind and direction: a single token edited before a step of an energy transformer, and what that does to its descent and to where it settles.';
COMMENT ON COLUMN native_patches.run_id IS 'Run.';
COMMENT ON COLUMN native_patches.layer IS 'Layer of the feature.';
COMMENT ON COLUMN native_patches.feature IS 'Feature, one that is active at the token.';
COMMENT ON COLUMN native_patches.token_id IS 'Token, the only one that is edited.';
COMMENT ON COLUMN native_patches.kind IS 'ablate: its activation is taken away; double: added once more.';
COMMENT ON COLUMN native_patches.direction IS 'feature: along its decoder row; decoder: as far along that of another feature; isotropic: as far along a random direction.';
COMMENT ON COLUMN native_patches.activation IS 'Of the feature at the token.';
COMMENT ON COLUMN native_patches.delta_energy IS 'Native E_t of the edited token minus that of the token as it was, before the step, keys held fixed.';
COMMENT ON COLUMN native_patches.fall IS 'By how much the step lowers E_t of the token as it was, keys held fixed.';
COMMENT ON COLUMN native_patches.fall_patched IS 'By how much it lowers that of the edited token: more means that the edit speeds the descent.';
COMMENT ON COLUMN native_patches.is_settled IS 'Whether both settle on the landscape of the settled context.';
COMMENT ON COLUMN native_patches.is_changed IS 'Whether they settle in different basins: a cosine of 0.99 or less.';
COMMENT ON COLUMN native_patches.distance IS '1 minus the cosine of where the two settle.';
COMMENT ON COLUMN native_patches.delta_settled IS 'E_t where the edited token settles minus where the other does.';
