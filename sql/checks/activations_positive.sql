-- An activation is above 0, and it and its gradients are numbers.
SELECT run_id, layer, feature, token_id, activation
FROM activations
WHERE NOT (activation > 0 AND isfinite(activation))
UNION ALL BY NAME
SELECT run_id, layer, feature, token_id, energy, g
FROM (
    UNPIVOT (SELECT run_id, layer, feature, token_id, COLUMNS('^g_') FROM activations)
    ON COLUMNS('^g_') INTO NAME energy VALUE g
)
WHERE NOT isfinite(g)
