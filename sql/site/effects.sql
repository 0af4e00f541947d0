-- Measured effects with the best prediction that the run has for them, beside the means and sizes along control
-- directions of the same norm; the largest first.
WITH controls AS (
    SELECT
        intervention_id,
        feature,
        count(*) AS n_controls,
        avg(delta_per_token) FILTER (control = 'isotropic') AS isotropic_per_token,
        avg(delta_per_token) FILTER (control = 'covariance') AS covariance_per_token,
        avg(delta_per_token) FILTER (control = 'decoder') AS decoder_per_token,
        max(abs(delta_per_token)) AS largest_control
    FROM intervention_effects
    WHERE direction > 0 AND category = 'all'
    GROUP BY ALL
)
SELECT
    e.intervention_id,
    e.layer,
    e.kind,
    e.value,
    e.feature,
    f.class,
    f.top_tokens,
    e.n_documents,
    e.n_edited,
    e.delta,
    e.delta_low,
    e.delta_high,
    e.delta_per_token,
    e.first_order,
    coalesce(e.blended, e.aligned, e.first_order) AS predicted,
    CASE WHEN e.blended IS NOT NULL THEN 'blended' WHEN e.aligned IS NOT NULL THEN 'aligned' ELSE 'first order' END AS predictor,
    e.kl_per_token,
    e.top_changed_edited,
    c.isotropic_per_token,
    c.covariance_per_token,
    c.decoder_per_token,
    c.largest_control,
    coalesce(c.n_controls, 0) AS n_controls
FROM intervention_effects AS e
LEFT JOIN controls AS c USING (intervention_id, feature)
LEFT JOIN features AS f ON f.layer = e.layer AND f.feature = e.feature
WHERE e.direction = 0 AND e.category = 'all'
ORDER BY e.intervention_id, abs(e.delta) DESC, e.feature
