-- Which roles a measured ablation confirms: of the features whose attribution for nll predicts a sign and that were
-- ablated, how many moved the loss that way, and for how many the interval of the measurement lies on that side, or on
-- the other. A feature that was ablated several times counts once, where most of its tokens were edited.
WITH roles AS (
    SELECT
        layer,
        feature,
        -- The older words, attractor and repulsor, say the same.
        CASE WHEN role IN ('supports', 'attractor') THEN 'supports' ELSE 'opposes' END AS role
    FROM efas
    WHERE energy = 'nll' AND gradient = 'decoder' AND category = 'all' AND role IS NOT NULL
),
ablated AS (
    SELECT *
    FROM intervention_effects
    WHERE kind = 'ablate' AND direction = 0 AND category = 'all'
    QUALIFY row_number() OVER (PARTITION BY layer, feature ORDER BY n_edited DESC, intervention_id) = 1
),
measured AS (
    SELECT
        r.layer,
        r.role,
        -- What the role predicts lies above 0.
        CASE WHEN r.role = 'supports' THEN a.delta_per_token ELSE -a.delta_per_token END AS predicted_way,
        CASE WHEN r.role = 'supports' THEN a.delta_low ELSE -a.delta_high END AS low,
        CASE WHEN r.role = 'supports' THEN a.delta_high ELSE -a.delta_low END AS high
    FROM roles AS r
    JOIN ablated AS a USING (layer, feature)
)
SELECT
    layer,
    role,
    count(*) AS n_ablated,
    count(*) FILTER (predicted_way > 0) AS n_same_sign,
    n_same_sign / n_ablated AS share_same_sign,
    count(low) AS n_intervals,
    count(*) FILTER (low > 0) AS n_confirmed,
    n_confirmed / nullif(n_intervals, 0) AS share_confirmed,
    count(*) FILTER (high < 0) AS n_contradicted
FROM measured
GROUP BY GROUPING SETS ((layer, role), (role))
ORDER BY layer NULLS LAST, role DESC
