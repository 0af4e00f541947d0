-- How much a feature keeps to each class of tokens, and to that of another document's token as a control.
SELECT
    o.feature,
    o.class,
    o.n_active,
    o.n_in_class,
    o.share,
    o.log_odds,
    o.z,
    o.q_value,
    o.is_assigned,
    m.share AS mates_share,
    m.z AS mates_z
FROM feature_classes AS o
LEFT JOIN feature_classes AS m
    ON m.run_id = o.run_id AND m.layer = o.layer AND m.feature = o.feature AND m.class = o.class AND m.labels = 'mates'
WHERE
    o.run_id = (SELECT run_id FROM current_run) AND o.layer = $layer AND o.feature IN (SELECT unnest($features))
    AND o.labels = 'own'
ORDER BY o.feature, o.share DESC, o.class
