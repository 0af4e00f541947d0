-- What patches do to attractors of later layers, and how much of a feature it takes to change one.

CREATE TABLE IF NOT EXISTS attractor_shifts (
    run_id          INTEGER  NOT NULL,
    intervention_id INTEGER  NOT NULL,
    feature         INTEGER  NOT NULL,
    direction       INTEGER  NOT NULL,
    context_id      INTEGER  NOT NULL,
    later_layer     SMALLINT NOT NULL,
    place           VARCHAR  NOT NULL,
    n_tokens        INTEGER  NOT NULL,
    n_settled       INTEGER  NOT NULL,
    n_changed       INTEGER  NOT NULL,
    n_new           INTEGER  NOT NULL,
    sum_distance    DOUBLE   NOT NULL,
    sum_hopfield    DOUBLE   NOT NULL
);
COMMENT ON TABLE  attractor_shifts IS 'One row per patch, later hooked layer and place: where residuals fall to with and without the patch.';
COMMENT ON COLUMN attractor_shifts.run_id IS 'Run.';
COMMENT ON COLUMN attractor_shifts.intervention_id IS 'Intervention.';
COMMENT ON COLUMN attractor_shifts.feature IS 'Feature that is edited.';
COMMENT ON COLUMN attractor_shifts.direction IS '0: along its decoder row; from 1: a random direction of the same norm.';
COMMENT ON COLUMN attractor_shifts.context_id IS 'Context.';
COMMENT ON COLUMN attractor_shifts.later_layer IS 'Layer at which residuals are read, with its own SAE, β and attractors.';
COMMENT ON COLUMN attractor_shifts.place IS 'edited: edited tokens; later: a seeded sample of the tokens after the first edited one that are not.';
COMMENT ON COLUMN attractor_shifts.n_tokens IS 'Tokens read.';
COMMENT ON COLUMN attractor_shifts.n_settled IS 'Those that settle both with and without the patch.';
COMMENT ON COLUMN attractor_shifts.n_changed IS 'Those of them whose fixed points are of different attractors.';
COMMENT ON COLUMN attractor_shifts.n_new IS 'Those of the changed ones that fall to no attractor of the layer''s sample.';
COMMENT ON COLUMN attractor_shifts.sum_distance IS 'Sum over settled tokens of 1 minus the cosine of the two fixed points.';
COMMENT ON COLUMN attractor_shifts.sum_hopfield IS 'Sum over settled tokens of E_H at the patched fixed point minus E_H at the other; not in nats.';

CREATE TABLE IF NOT EXISTS critical_doses (
    run_id        INTEGER  NOT NULL,
    layer         SMALLINT NOT NULL,
    feature       INTEGER  NOT NULL,
    later_layer   SMALLINT NOT NULL,
    token_id      BIGINT   NOT NULL,
    activation    DOUBLE   NOT NULL,
    attractor     INTEGER,
    scale_down    DOUBLE,
    attractor_down INTEGER,
    scale_up      DOUBLE,
    attractor_up  INTEGER
);
COMMENT ON TABLE  critical_doses IS 'How far a feature''s activation must be scaled at one token for that token''s basin at a later layer to change.';
COMMENT ON COLUMN critical_doses.run_id IS 'Run.';
COMMENT ON COLUMN critical_doses.layer IS 'Layer of the feature.';
COMMENT ON COLUMN critical_doses.feature IS 'Feature.';
COMMENT ON COLUMN critical_doses.later_layer IS 'Layer at which the token''s residual is read.';
COMMENT ON COLUMN critical_doses.token_id IS 'Token at which the feature is active; it alone is edited.';
COMMENT ON COLUMN critical_doses.activation IS 'a there.';
COMMENT ON COLUMN critical_doses.attractor IS 'Attractor of the unpatched residual; NULL for one that the layer''s sample has not.';
COMMENT ON COLUMN critical_doses.scale_down IS 'Largest factor below 1 at which the basin is another; NULL when ablation does not change it.';
COMMENT ON COLUMN critical_doses.attractor_down IS 'The attractor there; NULL as above.';
COMMENT ON COLUMN critical_doses.scale_up IS 'Smallest factor above 1, up to 16, at which it is another; NULL when none does.';
COMMENT ON COLUMN critical_doses.attractor_up IS 'The attractor there.';

ALTER TABLE intervention_settings ADD COLUMN IF NOT EXISTS shift_tokens INTEGER DEFAULT 0;
COMMENT ON COLUMN intervention_settings.shift_tokens IS 'Later tokens of each patch at which attractors of later layers were read; 0: none were.';
