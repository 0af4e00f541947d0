-- Validation of predictors on the edited contexts themselves, with reliability and intervals by leaving documents out.

CREATE TABLE IF NOT EXISTS intervention_readings (
    run_id          INTEGER NOT NULL,
    intervention_id INTEGER NOT NULL,
    feature         INTEGER NOT NULL,
    context_id      INTEGER NOT NULL,
    n_tokens        INTEGER NOT NULL,
    n_active        INTEGER NOT NULL,
    sum_a           DOUBLE  NOT NULL,
    sum_a2          DOUBLE  NOT NULL,
    sum_g           DOUBLE  NOT NULL,
    sum_g2          DOUBLE  NOT NULL,
    sum_ag          DOUBLE  NOT NULL,
    active_g        DOUBLE  NOT NULL,
    active_g2       DOUBLE  NOT NULL,
    cells           INTEGER[]
);
COMMENT ON TABLE  intervention_readings IS 'One row per feature and context of an intervention: activation a and decoder gradient g of nll in the unpatched pass, so that EFAS and the like can be compared with effects on the very same tokens.';
COMMENT ON COLUMN intervention_readings.run_id IS 'Run.';
COMMENT ON COLUMN intervention_readings.intervention_id IS 'Intervention.';
COMMENT ON COLUMN intervention_readings.feature IS 'Feature.';
COMMENT ON COLUMN intervention_readings.context_id IS 'Context, whether or not the feature is active in it.';
COMMENT ON COLUMN intervention_readings.n_tokens IS 'Included tokens.';
COMMENT ON COLUMN intervention_readings.n_active IS 'Those at which the feature is active.';
COMMENT ON COLUMN intervention_readings.sum_a IS 'Sum of a over included tokens.';
COMMENT ON COLUMN intervention_readings.sum_a2 IS 'Sum of a^2.';
COMMENT ON COLUMN intervention_readings.sum_g IS 'Sum of g, in nats by a unit of activation.';
COMMENT ON COLUMN intervention_readings.sum_g2 IS 'Sum of g^2.';
COMMENT ON COLUMN intervention_readings.sum_ag IS 'Sum of a g: attribution, in nats.';
COMMENT ON COLUMN intervention_readings.active_g IS 'Sum of g over active tokens.';
COMMENT ON COLUMN intervention_readings.active_g2 IS 'Sum of g^2 over active tokens.';
COMMENT ON COLUMN intervention_readings.cells IS 'Included tokens by bin of a (0 inactive, 1 to 4; outer) and of g (8; inner), at the edges of histogram_bins: 40 counts; NULL for a feature without quartiles.';

ALTER TABLE predictor_statistics ADD COLUMN IF NOT EXISTS n_documents INTEGER;
ALTER TABLE predictor_statistics ADD COLUMN IF NOT EXISTS spearman_disattenuated DOUBLE;
ALTER TABLE predictor_statistics ADD COLUMN IF NOT EXISTS spearman_disattenuated_low DOUBLE;
ALTER TABLE predictor_statistics ADD COLUMN IF NOT EXISTS spearman_disattenuated_high DOUBLE;
ALTER TABLE predictor_statistics ADD COLUMN IF NOT EXISTS pearson_disattenuated DOUBLE;
ALTER TABLE predictor_statistics ADD COLUMN IF NOT EXISTS pearson_disattenuated_low DOUBLE;
ALTER TABLE predictor_statistics ADD COLUMN IF NOT EXISTS pearson_disattenuated_high DOUBLE;
COMMENT ON COLUMN predictor_statistics.predictor IS 'A column of interventions, a score of the feature on the same contexts, or random; measured, of transfer, is the effect itself on half A: its correlation with that on half B is the reliability.';
COMMENT ON COLUMN predictor_statistics.n_documents IS 'Documents of the contexts: of both halves for transfer.';
COMMENT ON COLUMN predictor_statistics.spearman_low IS 'Lower end of its 95 % interval over other documents and features (jackknife of Fisher''s z); NULL below 15 documents, in each half for transfer.';
COMMENT ON COLUMN predictor_statistics.spearman_disattenuated IS 'Of transfer: spearman over the root of the reliability, about what it would be were effects measured without error; NULL unless the reliability''s interval lies above 0, and for same and partial.';
COMMENT ON COLUMN predictor_statistics.spearman_disattenuated_low IS 'Lower end of its 95 % interval, the reliability''s own error included.';
COMMENT ON COLUMN predictor_statistics.spearman_disattenuated_high IS 'Upper end.';
COMMENT ON COLUMN predictor_statistics.pearson_disattenuated IS 'The same of pearson.';
COMMENT ON COLUMN predictor_statistics.pearson_disattenuated_low IS 'Lower end of its 95 % interval.';
COMMENT ON COLUMN predictor_statistics.pearson_disattenuated_high IS 'Upper end.';
COMMENT ON TABLE  effect_statistics IS 'Intervals of effects across documents; intervention_effects shows them.';
COMMENT ON COLUMN effect_statistics.delta_low IS 'Lower end of the 95 % interval of delta_per_token (jackknife over documents); NULL with fewer than 15 documents.';

-- Statistics of before this migration had percentile intervals, which held the truth in 83 % of samples, and scores of
-- the whole run. They are computed anew by the next elw intervene; until then there is no interval.
ALTER TABLE intervention_settings ADD COLUMN IF NOT EXISTS statistics_version INTEGER DEFAULT 1;
COMMENT ON COLUMN intervention_settings.statistics_version IS 'Of the statistics: 1 had bootstrap intervals, and scores of the whole run; 2 has intervals by leaving documents out, and scores of the same contexts.';
UPDATE effect_statistics SET delta_low = NULL, delta_high = NULL;
UPDATE predictor_statistics
SET spearman_low = NULL, spearman_high = NULL, pearson_low = NULL, pearson_high = NULL;
DELETE FROM predictor_statistics
WHERE predictor IN ('efas', 'abs_efas', 'efas_active', 'attribution_per_token', 'mi_excess', 'density');

-- Control directions of three kinds; those of before were isotropic.
ALTER TABLE interventions ADD COLUMN IF NOT EXISTS control VARCHAR;
COMMENT ON COLUMN interventions.control IS 'What a direction from 1 on is: isotropic, random in every direction; covariance, random with the covariance of residuals at the layer; decoder, the row of another feature that fires about as often. NULL for the feature''s own.';
COMMENT ON COLUMN interventions.direction IS '0: along the feature''s decoder row. From 1: the same numbers along a control direction of the same norm.';
COMMENT ON TABLE  interventions IS 'One row per patch, a feature or a control direction in one context: the measured change of the model''s loss, and predictions of their sum.';
UPDATE interventions SET control = 'isotropic' WHERE direction > 0;
COMMENT ON COLUMN effect_statistics.direction IS '0: decoder row; from 1: a control direction.';
COMMENT ON COLUMN attractor_shifts.direction IS '0: along its decoder row; from 1: a control direction of the same norm.';
COMMENT ON COLUMN attractor_shifts.sum_hopfield IS 'Sum over settled tokens of E_H, the energy of the Hopfield network of decoder rows and not the energy hopfield, at the patched fixed point minus E_H at the other; not in nats.';
ALTER TABLE intervention_features ADD COLUMN IF NOT EXISTS control_features INTEGER[];
COMMENT ON COLUMN intervention_features.control_features IS 'Features that fire about as often, whose decoder rows are the controls decoder, in the order of their directions; NULL without.';
ALTER TABLE intervention_settings ADD COLUMN IF NOT EXISTS controls VARCHAR[];
UPDATE intervention_settings SET controls = ['isotropic'] WHERE n_directions > 0;
COMMENT ON COLUMN intervention_settings.controls IS 'Kinds of control directions in the order of their numbers; NULL without any.';
COMMENT ON COLUMN intervention_settings.n_directions IS 'Control directions of each kind measured beside each feature.';
