-- One row per feature: how often it fires and on what.
CREATE OR REPLACE VIEW features AS
WITH classes AS (
    SELECT layer, feature, max(class) FILTER (is_assigned) AS class, bool_or(q_value IS NOT NULL) AS is_tested
    FROM feature_classes
    WHERE run_id = (SELECT run_id FROM current_run) AND labels = 'own'
    GROUP BY ALL
)
SELECT
    f.layer,
    f.feature,
    f.n_active,
    f.n_active / t.n_tokens AS density,
    f.mean_activation,
    f.max_activation,
    -- Tested against every class and kept by none: general. Too little to test: NULL.
    coalesce(k.class, CASE WHEN k.is_tested THEN 'general' END) AS class,
    f.top_tokens
FROM feature_activity AS f
JOIN layer_tokens AS t ON t.run_id = f.run_id AND t.layer = f.layer AND t.reason IS NULL
LEFT JOIN classes AS k ON k.layer = f.layer AND k.feature = f.feature
WHERE f.run_id = (SELECT run_id FROM current_run);
COMMENT ON VIEW features IS 'Features of the current run that fire at least once: density and the tokens of their strongest activations.';
COMMENT ON COLUMN features.layer IS 'Layer.';
COMMENT ON COLUMN features.feature IS 'Feature, from 0.';
COMMENT ON COLUMN features.n_active IS 'Included tokens at which it is active.';
COMMENT ON COLUMN features.density IS 'Share of included tokens at which it is active.';
COMMENT ON COLUMN features.mean_activation IS 'Mean of a where it is active.';
COMMENT ON COLUMN features.max_activation IS 'Largest a.';
COMMENT ON COLUMN features.class IS 'Concept class of the feature (feature_classes): regex, number, word, code, punctuation, whitespace, other, or general when it keeps to none; NULL where there is too little to test.';
COMMENT ON COLUMN features.top_tokens IS 'Texts of the tokens of its 8 strongest activations, strongest first.';
