-- The exponents of dose over the features of an intervention, beside those of control directions.
-- columns as in: intervention_settings, dose_summaries
CREATE OR REPLACE VIEW dose_summary AS
SELECT
    d.intervention_id,
    s.layer,
    s.kind,
    s.value,
    s.edited,
    d.control,
    d.measure,
    d.n_features,
    d.n_documents,
    d.p,
    d.p_low,
    d.p_high,
    d.n_pairs,
    d.difference,
    d.difference_low,
    d.difference_high
FROM dose_summaries AS d
JOIN intervention_settings AS s USING (run_id, intervention_id)
WHERE d.run_id = (SELECT run_id FROM current_run);
COMMENT ON VIEW dose_summary IS 'Mean exponents of dose over the features of each intervention of the current run, along the features and along each kind of control, with the difference; for interventions with --dose.';
