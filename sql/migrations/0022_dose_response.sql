-- Dose response: the same patches with their change multiplied, and the exponents of what that does.

ALTER TABLE intervention_settings ADD COLUMN IF NOT EXISTS doses DOUBLE[];
COMMENT ON COLUMN intervention_settings.doses IS 'Factors, beside 1, by which each patch''s change was multiplied to measure it again, ascending; NULL without --dose.';

CREATE TABLE IF NOT EXISTS intervention_doses (
    run_id          INTEGER NOT NULL,
    intervention_id INTEGER NOT NULL,
    feature         INTEGER NOT NULL,
    direction       INTEGER NOT NULL,
    context_id      INTEGER NOT NULL,
    dose            DOUBLE  NOT NULL,
    delta_edited    DOUBLE,
    delta_later     DOUBLE,
    kl_edited       DOUBLE,
    kl_later        DOUBLE,
    failure         VARCHAR
);
COMMENT ON TABLE  intervention_doses IS 'One row per patch and dose: what a patch of interventions does when its change is multiplied. Dose 1 is in interventions.';
COMMENT ON COLUMN intervention_doses.run_id IS 'Run.';
COMMENT ON COLUMN intervention_doses.intervention_id IS 'Intervention.';
COMMENT ON COLUMN intervention_doses.feature IS 'Feature whose activation is edited.';
COMMENT ON COLUMN intervention_doses.direction IS '0: along its decoder row; from 1: a control direction of the same norm, as in interventions.';
COMMENT ON COLUMN intervention_doses.context_id IS 'Context.';
COMMENT ON COLUMN intervention_doses.dose IS 'Factor of the change that is added to x at edited tokens. 0: no edit, but every number of x there is moved by one unit in its last place, which shows what rounding does; of direction 0 alone.';
COMMENT ON COLUMN intervention_doses.delta_edited IS 'Measured change of the loss summed over edited tokens, in nats; NULL after a failure.';
COMMENT ON COLUMN intervention_doses.delta_later IS 'The same over later tokens that are not edited.';
COMMENT ON COLUMN intervention_doses.kl_edited IS 'KL divergence of the patched next-token distribution from the model''s own, summed over edited tokens, in nats. Where rounding makes it negative at a token it is left so, unlike in interventions, since the sum of what is above 0 would be too large.';
COMMENT ON COLUMN intervention_doses.kl_later IS 'The same over later tokens.';
COMMENT ON COLUMN intervention_doses.failure IS 'Why there is no measurement; NULL otherwise.';

CREATE TABLE IF NOT EXISTS dose_statistics (
    run_id          INTEGER NOT NULL,
    intervention_id INTEGER NOT NULL,
    feature         INTEGER NOT NULL,
    control         VARCHAR,
    measure         VARCHAR NOT NULL,
    p               DOUBLE,
    p_low           DOUBLE,
    p_high          DOUBLE,
    n_patches       INTEGER NOT NULL,
    n_documents     INTEGER NOT NULL,
    n_doses         INTEGER NOT NULL,
    smallest_dose   DOUBLE,
    above_floor     DOUBLE  NOT NULL
);
COMMENT ON TABLE  dose_statistics IS 'Exponents of dose by feature and kind of direction; dose_response shows them.';
COMMENT ON COLUMN dose_statistics.run_id IS 'Run.';
COMMENT ON COLUMN dose_statistics.intervention_id IS 'Intervention.';
COMMENT ON COLUMN dose_statistics.feature IS 'Feature.';
COMMENT ON COLUMN dose_statistics.control IS 'NULL: along the feature''s own decoder row. Else the kind of control directions, taken together.';
COMMENT ON COLUMN dose_statistics.measure IS 'What grows with the dose: delta_edited, |change of the loss| summed over the edited tokens of a context; delta_total, over later ones too; kl, KL divergence over both.';
COMMENT ON COLUMN dose_statistics.p IS 'Exponent: the slope of the log of the mean over patches against the log of the dose, over the doses that count; NULL with fewer than 3.';
COMMENT ON COLUMN dose_statistics.p_low IS 'Lower end of its 95 % interval across documents (jackknife); NULL with fewer than 15 documents.';
COMMENT ON COLUMN dose_statistics.p_high IS 'Upper end.';
COMMENT ON COLUMN dose_statistics.n_patches IS 'Patches that were measured at every dose.';
COMMENT ON COLUMN dose_statistics.n_documents IS 'Their documents.';
COMMENT ON COLUMN dose_statistics.n_doses IS 'Doses that count, 1 included: from the largest down, as long as the mean is at least 10 times what rounding does, to this feature''s patches or to all, whichever is more.';
COMMENT ON COLUMN dose_statistics.smallest_dose IS 'The smallest of them; NULL where none counts.';
COMMENT ON COLUMN dose_statistics.above_floor IS 'Share of single points, one for each patch and dose, that are at least 10 times what rounding does. No point is left out for itself.';

CREATE TABLE IF NOT EXISTS dose_summaries (
    run_id          INTEGER NOT NULL,
    intervention_id INTEGER NOT NULL,
    control         VARCHAR,
    measure         VARCHAR NOT NULL,
    n_features      INTEGER NOT NULL,
    n_documents     INTEGER NOT NULL,
    p               DOUBLE,
    p_low           DOUBLE,
    p_high          DOUBLE,
    n_pairs         INTEGER,
    difference      DOUBLE,
    difference_low  DOUBLE,
    difference_high DOUBLE
);
COMMENT ON TABLE  dose_summaries IS 'Exponents of dose over the features of an intervention, by kind of direction; dose_summary shows them.';
COMMENT ON COLUMN dose_summaries.run_id IS 'Run.';
COMMENT ON COLUMN dose_summaries.intervention_id IS 'Intervention.';
COMMENT ON COLUMN dose_summaries.control IS 'NULL: along the features'' own decoder rows. Else the kind of control directions.';
COMMENT ON COLUMN dose_summaries.measure IS 'delta_edited, delta_total or kl, as in dose_statistics.';
COMMENT ON COLUMN dose_summaries.n_features IS 'Features with an exponent and at least 5 patches.';
COMMENT ON COLUMN dose_summaries.n_documents IS 'Documents of their patches.';
COMMENT ON COLUMN dose_summaries.p IS 'Mean of their exponents; NULL with fewer than 5 features.';
COMMENT ON COLUMN dose_summaries.p_low IS 'Lower end of its 95 % interval over other documents and features (jackknife of both); NULL with fewer than 15 documents.';
COMMENT ON COLUMN dose_summaries.p_high IS 'Upper end.';
COMMENT ON COLUMN dose_summaries.n_pairs IS 'Such features with an exponent along both, over the doses that count for both; NULL for the features'' own.';
COMMENT ON COLUMN dose_summaries.difference IS 'Mean over them of the exponent along the feature minus that along the control, over the same doses.';
COMMENT ON COLUMN dose_summaries.difference_low IS 'Lower end of its 95 % interval, made as that of p.';
COMMENT ON COLUMN dose_summaries.difference_high IS 'Upper end.';
