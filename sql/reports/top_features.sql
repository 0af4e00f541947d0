-- The features that align most with each energy (decoder gradient, all categories): by |t_specific| among those with
-- q_specific < 0.05. Where no feature has, the most extreme t_specific stand in, so that a reader sees what the test
-- refused; in a run without a test of the direction, the most extreme z. Attribution is also given for each active token
-- and, where the energy is a loss, as a share of the loss summed over the layer's included tokens.
-- Twelve features an energy, five of the positive control; tokens are the distinct ones it fires on most.
-- Layers at which the energy is uncalibrated are left out.
WITH tested AS (
    SELECT
        *,
        is_control(energy) AS is_control,
        coalesce(q_specific < 0.05, false) AS is_specific,
        bool_or(coalesce(q_specific < 0.05, false)) OVER (PARTITION BY energy) AS has_specific,
        count(t_specific) OVER (PARTITION BY energy) > 0 AS has_direction
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all' AND q_value IS NOT NULL
        AND (energy, layer) NOT IN (SELECT (energy, layer) FROM uncalibrated_layers)
),
ranked AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY energy
            ORDER BY CASE WHEN has_direction THEN abs(t_specific) ELSE abs(z) END DESC NULLS LAST, layer, feature
        ) AS place
    FROM tested
    WHERE is_specific OR NOT has_specific
),
chosen AS (
    SELECT *
    FROM ranked
    WHERE place <= CASE WHEN is_control THEN 5 ELSE 12 END
),
fired AS (
    SELECT a.layer, a.feature, t.text, max(a.activation) AS strongest
    FROM activations AS a
    SEMI JOIN chosen AS c ON c.layer = a.layer AND c.feature = a.feature
    JOIN tokens AS t USING (run_id, token_id)
    WHERE a.run_id = (SELECT run_id FROM current_run)
    GROUP BY a.layer, a.feature, t.text
),
read AS (
    SELECT layer, feature, list(text ORDER BY strongest DESC, text)[1:6] AS top_tokens
    FROM fired
    GROUP BY layer, feature
)
SELECT
    c.energy,
    c.is_control,
    c.is_specific,
    c.has_direction,
    c.place,
    c.layer,
    c.feature,
    r.top_tokens,
    c.n_active,
    c.n_active / c.n_tokens AS density,
    c.score,
    c.ci_low,
    c.ci_high,
    c.score_active,
    c.cosine,
    c.t_specific,
    c.q_specific,
    c.z,
    c.q_value,
    c.q_documents,
    c.attribution,
    c.attribution / c.n_active AS attribution_per_token,
    c.attribution / l.total AS attribution_share,
    c.attribution_low,
    c.attribution_high,
    c.attribution_curvature,
    c.role,
    units_of(c.energy) AS units
FROM chosen AS c
LEFT JOIN read AS r USING (layer, feature)
LEFT JOIN layer_losses AS l
    ON l.run_id = (SELECT run_id FROM current_run) AND l.energy = c.energy AND l.layer = c.layer
ORDER BY c.is_control, c.energy, c.place
