-- The ten largest measured effects of each intervention, with the means along control directions of the same norm, by kind.
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
),
ranked AS (
    SELECT
        e.*,
        c.isotropic_per_token,
        c.covariance_per_token,
        c.decoder_per_token,
        k.class,
        row_number() OVER (PARTITION BY e.intervention_id ORDER BY abs(e.delta) DESC, e.feature) AS place
    FROM intervention_effects AS e
    LEFT JOIN controls AS c USING (intervention_id, feature)
    LEFT JOIN features AS k ON k.layer = e.layer AND k.feature = e.feature
    WHERE e.direction = 0 AND e.category = 'all'
)
SELECT
    intervention_id,
    kind,
    value,
    layer,
    feature,
    class,
    n_edited,
    delta,
    first_order,
    coalesce(blended, aligned) AS predicted,
    delta_per_token,
    delta_low,
    delta_high,
    isotropic_per_token,
    covariance_per_token,
    decoder_per_token,
    kl_per_token,
    top_changed_edited
FROM ranked
WHERE place <= 10
ORDER BY intervention_id, place
