-- How well each score predicts what interventions did.
-- columns as in: predictor_statistics, intervention_settings
CREATE OR REPLACE VIEW predictor_validation AS
SELECT
    p.intervention_id,
    s.layer,
    s.kind,
    s.value,
    s.edited,
    p.validation,
    p.target,
    p.predictor,
    p.backward_passes,
    p.n_features,
    p.n_documents,
    p.spearman,
    p.spearman_low,
    p.spearman_high,
    p.pearson,
    p.pearson_low,
    p.pearson_high,
    p.spearman_disattenuated,
    p.spearman_disattenuated_low,
    p.spearman_disattenuated_high,
    p.pearson_disattenuated,
    p.pearson_disattenuated_low,
    p.pearson_disattenuated_high
FROM predictor_statistics AS p
JOIN intervention_settings AS s USING (run_id, intervention_id)
WHERE p.run_id = (SELECT run_id FROM current_run);
COMMENT ON VIEW predictor_validation IS 'Correlation over features of each predictor with the measured effect of the interventions of the current run: on the same tokens, and from one half of the documents to the other, where the measurement itself has a reliability.';
