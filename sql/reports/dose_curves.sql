-- What patches did at each dose, in the mean over the patches of each intervention; dose 0 is what rounding does.
WITH curves AS (
    SELECT *, coalesce(control, 'feature') AS along
    FROM dose_effects
)
SELECT
    intervention_id,
    layer,
    kind,
    value,
    along,
    dose,
    sum(n_patches)::BIGINT AS n_patches,
    fsum(n_patches * delta_total_size) / sum(n_patches) AS delta_total_size,
    fsum(n_patches * kl) / sum(n_patches) AS kl
FROM curves
GROUP BY ALL
ORDER BY intervention_id, along, dose
