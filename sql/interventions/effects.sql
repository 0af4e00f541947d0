-- The largest effects of some interventions, with the means along control directions beside.
WITH controls AS (
    SELECT
        intervention_id,
        feature,
        avg(delta_per_token) FILTER (control = 'isotropic') AS isotropic_per_token,
        avg(delta_per_token) FILTER (control = 'covariance') AS covariance_per_token,
        avg(delta_per_token) FILTER (control = 'decoder') AS decoder_per_token
    FROM intervention_effects
    WHERE direction > 0 AND category = 'all'
    GROUP BY ALL
)
SELECT
    e.layer,
    e.feature,
    f.chosen_by,
    e.n_edited,
    round(e.delta, 3) AS delta,
    round(e.first_order, 3) AS first_order,
    round(coalesce(e.blended, e.aligned), 3) AS predicted,
    round(e.delta_per_token, 4) AS per_token,
    round(e.delta_low, 4) AS low,
    round(e.delta_high, 4) AS high,
    round(c.isotropic_per_token, 4) AS isotropic,
    round(c.covariance_per_token, 4) AS covariance,
    round(c.decoder_per_token, 4) AS decoder,
    round(e.kl_per_token, 4) AS kl,
    round(e.top_changed_edited, 3) AS top_changed
FROM intervention_effects AS e
JOIN intervention_features AS f USING (intervention_id, feature)
LEFT JOIN controls AS c USING (intervention_id, feature)
WHERE e.intervention_id IN (SELECT unnest($interventions::INTEGER[]))
    AND f.run_id = (SELECT run_id FROM current_run)
    AND e.direction = 0
    AND e.category = 'all'
ORDER BY abs(e.delta) DESC, e.layer, e.feature
LIMIT $limit
