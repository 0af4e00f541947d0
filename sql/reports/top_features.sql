-- The features that align most with each energy (decoder gradient, all categories): by |score| among those with
-- q < 0.05. Where no feature has, the most extreme z stand in, so that a reader sees what the test refused.
-- Twelve features an energy, five of the positive control; tokens are the distinct ones it fires on most.
-- The ends of the interval of score are cut at -1 and 1. Layers at which the energy is uncalibrated are left out.
WITH tested AS (
    SELECT
        *,
        is_control(energy) AS is_control,
        q_value < 0.05 AS is_significant,
        bool_or(q_value < 0.05) OVER (PARTITION BY energy) AS has_significant
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all' AND q_value IS NOT NULL
        AND (energy, layer) NOT IN (SELECT (energy, layer) FROM uncalibrated_layers)
),
ranked AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY energy
            ORDER BY CASE WHEN has_significant THEN abs(score) ELSE abs(z) END DESC, layer, feature
        ) AS place
    FROM tested
    WHERE is_significant OR NOT has_significant
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
    c.is_significant,
    c.place,
    c.layer,
    c.feature,
    r.top_tokens,
    c.n_active,
    c.n_active / c.n_tokens AS density,
    c.score,
    greatest(c.ci_low, -1) AS ci_low,
    least(c.ci_high, 1) AS ci_high,
    c.score_active,
    c.z,
    c.q_value,
    c.attribution,
    c.attribution_low,
    c.attribution_high,
    c.role,
    units_of(c.energy) AS units
FROM chosen AS c
LEFT JOIN read AS r USING (layer, feature)
ORDER BY c.is_control, c.energy, c.place
