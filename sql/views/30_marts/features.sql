-- One row per feature: how often it fires and on what.
CREATE OR REPLACE VIEW features AS
WITH fired AS (
    SELECT
        a.layer,
        a.feature,
        count(*) AS n_active,
        avg(a.activation) AS mean_activation,
        max(a.activation) AS max_activation,
        -- Ties go to the earlier token, so that the list does not depend on threads.
        max_by(t.text, {'activation': a.activation, 'earlier': -a.token_id}, 8) AS top_tokens
    FROM activations AS a
    JOIN tokens AS t USING (run_id, token_id)
    WHERE a.run_id = (SELECT run_id FROM current_run)
    GROUP BY a.layer, a.feature
),
included AS (
    SELECT layer, count(*) AS n_tokens
    FROM token_layers
    WHERE run_id = (SELECT run_id FROM current_run) AND included
    GROUP BY layer
),
classes AS (
    SELECT layer, feature, max(class) FILTER (is_assigned) AS class, bool_or(q_value IS NOT NULL) AS is_tested
    FROM feature_classes
    WHERE run_id = (SELECT run_id FROM current_run) AND labels = 'own'
    GROUP BY ALL
)
SELECT
    f.layer,
    f.feature,
    f.n_active,
    f.n_active / i.n_tokens AS density,
    f.mean_activation,
    f.max_activation,
    -- Tested against every class and kept by none: general. Too little to test: NULL.
    coalesce(k.class, CASE WHEN k.is_tested THEN 'general' END) AS class,
    f.top_tokens
FROM fired AS f
JOIN included AS i USING (layer)
LEFT JOIN classes AS k USING (layer, feature);
COMMENT ON VIEW features IS 'Features of the current run that fire at least once: density and the tokens of their strongest activations.';
COMMENT ON COLUMN features.layer IS 'Layer.';
COMMENT ON COLUMN features.feature IS 'Feature, from 0.';
COMMENT ON COLUMN features.n_active IS 'Included tokens at which it is active.';
COMMENT ON COLUMN features.density IS 'Share of included tokens at which it is active.';
COMMENT ON COLUMN features.mean_activation IS 'Mean of a where it is active.';
COMMENT ON COLUMN features.max_activation IS 'Largest a.';
COMMENT ON COLUMN features.class IS 'Concept class of the feature (feature_classes): regex, number, word, code, punctuation, whitespace, other, or general when it keeps to none; NULL where there is too little to test.';
COMMENT ON COLUMN features.top_tokens IS 'Texts of the tokens of its 8 strongest activations, strongest first.';
