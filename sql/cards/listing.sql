-- Features of the current run, each with the numbers it can be ranked by, for one energy; n_found: how many there are,
-- those beyond $n too. {order} is one of RANKINGS.
WITH found AS (
    SELECT layer, feature
    FROM feature_tokens
    WHERE run_id = (SELECT run_id FROM current_run) AND contains(lower(text), lower($search))
    UNION
    SELECT layer, feature
    FROM feature_logits
    WHERE
        run_id = (SELECT run_id FROM current_run) AND direction = 'promoted' AND contains(lower(text), lower($search))
    UNION
    SELECT layer, feature
    FROM feature_activity
    WHERE
        run_id = (SELECT run_id FROM current_run)
        AND len(list_filter(top_tokens, lambda t: contains(lower(t), lower($search)))) > 0
),
effects AS (
    SELECT
        layer,
        feature,
        arg_max(delta_per_token, intervention_id) AS effect,
        arg_max({'low': delta_low, 'high': delta_high}, intervention_id) AS edges
    FROM intervention_effects
    WHERE direction = 0 AND category = 'all' AND kind = 'ablate'
    GROUP BY ALL
)
SELECT
    f.layer,
    f.feature,
    f.class,
    f.n_active,
    f.density,
    f.max_activation,
    e.score AS efas,
    e.z,
    e.cosine,
    e.q_specific,
    e.q_value,
    e.q_documents,
    e.attribution,
    e.q_attribution,
    e.role,
    m.mi_excess AS mi,
    x.effect,
    x.edges.low AS effect_low,
    x.edges.high AS effect_high,
    is_control($energy) AS is_control,
    f.top_tokens,
    count(*) OVER () AS n_found
FROM features AS f
LEFT JOIN efas AS e
    ON e.layer = f.layer AND e.feature = f.feature AND e.energy = $energy AND e.gradient = 'decoder'
    AND e.category = 'all'
LEFT JOIN mutual_information AS m
    ON m.layer = f.layer AND m.feature = f.feature AND m.energy = $energy AND m.category = 'all'
LEFT JOIN effects AS x ON x.layer = f.layer AND x.feature = f.feature
WHERE
    ($layers IS NULL OR f.layer IN (SELECT unnest($layers)))
    AND ($class IS NULL OR f.class = $class)
    AND ($search IS NULL OR (f.layer, f.feature) IN (SELECT (layer, feature) FROM found))
ORDER BY {order} DESC NULLS LAST, f.layer, f.feature
LIMIT $n
