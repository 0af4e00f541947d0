-- The exponent by which what a feature's edit does grows with its dose.
-- columns as in: intervention_settings, dose_statistics
CREATE OR REPLACE VIEW dose_response AS
SELECT
    d.intervention_id,
    s.layer,
    s.kind,
    s.value,
    s.edited,
    d.feature,
    d.control,
    d.measure,
    d.p,
    d.p_low,
    d.p_high,
    d.n_patches,
    d.n_documents,
    d.n_doses,
    len(s.doses) + 1 AS n_doses_measured,
    d.smallest_dose,
    d.above_floor
FROM dose_statistics AS d
JOIN intervention_settings AS s USING (run_id, intervention_id)
WHERE d.run_id = (SELECT run_id FROM current_run);
COMMENT ON VIEW dose_response IS 'Exponents p of what interventions of the current run do by the dose of the edit, by feature and kind of direction; for interventions with --dose.';
COMMENT ON COLUMN dose_response.n_doses_measured IS 'Doses at which its patches were measured, 1 included.';
