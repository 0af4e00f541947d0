-- By which power of the dose what a feature's edits do grows, along the feature and along its controls.
SELECT
    d.feature,
    d.intervention_id,
    d.control,
    d.measure,
    d.p,
    d.p_low,
    d.p_high,
    d.n_patches,
    d.n_documents,
    d.n_doses,
    d.n_doses_measured,
    d.smallest_dose
FROM dose_response AS d
WHERE d.layer = $layer AND d.feature IN (SELECT unnest($features))
ORDER BY d.feature, d.intervention_id, d.control NULLS FIRST, d.measure DESC
