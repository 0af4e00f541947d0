-- Mean exponents of dose of an intervention, the features' own before those of controls.
SELECT measure, control, p, p_low, p_high
FROM dose_summary
WHERE intervention_id = $intervention AND measure IN ('kl', 'delta_total') AND p IS NOT NULL
ORDER BY measure DESC, list_position(['isotropic', 'covariance', 'decoder'], control) NULLS FIRST
