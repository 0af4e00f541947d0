-- By which power of the dose what edits do grows: means over features, along features and along each kind of control, with the difference over the same doses.
SELECT
    intervention_id,
    layer,
    kind,
    value,
    measure,
    coalesce(control, 'feature') AS along,
    n_features,
    n_documents,
    p,
    p_low,
    p_high,
    n_pairs,
    difference,
    difference_low,
    difference_high
FROM dose_summary
ORDER BY intervention_id, measure DESC, list_position(['isotropic', 'covariance', 'decoder'], control) NULLS FIRST
