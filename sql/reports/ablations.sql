-- What measured ablations can tell: of the features that were ablated, for how many the interval of the effect across
-- documents lies apart from 0, how many move the loss by more than each of their control directions, and how many do
-- both. A feature that was ablated several times counts once, where most of its tokens were edited.
WITH ablated AS (
    SELECT *
    FROM intervention_effects
    WHERE kind = 'ablate' AND direction = 0 AND category = 'all'
    QUALIFY row_number() OVER (PARTITION BY layer, feature ORDER BY n_edited DESC, intervention_id) = 1
),
controls AS (
    SELECT intervention_id, layer, feature, max(abs(delta_per_token)) AS largest_control
    FROM intervention_effects
    WHERE direction > 0 AND category = 'all'
    GROUP BY ALL
),
told AS (
    SELECT
        coalesce(a.delta_low > 0 OR a.delta_high < 0, false) AS is_apart,
        coalesce(abs(a.delta_per_token) > c.largest_control, false) AS is_beyond,
        a.delta_low,
        c.largest_control
    FROM ablated AS a
    LEFT JOIN controls AS c USING (intervention_id, layer, feature)
)
SELECT
    count(*) AS n_ablated,
    count(delta_low) AS n_intervals,
    count(*) FILTER (is_apart) AS n_apart,
    count(largest_control) AS n_controlled,
    count(*) FILTER (is_beyond) AS n_beyond,
    count(*) FILTER (is_apart AND is_beyond) AS n_apart_and_beyond
FROM told
