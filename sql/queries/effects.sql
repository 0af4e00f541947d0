-- @effects: What did editing features do to the loss, and what had been predicted? (elw intervene measures it.)
-- $layer: only of this layer (INTEGER, default NULL)
-- $n: rows (INTEGER, default 20)
SELECT
    intervention_id AS id, kind, concat(layer, ':', feature) AS feature, n_documents, delta, delta_low, delta_high, kl,
    first_order, aligned
FROM intervention_effects
WHERE direction = 0 AND category = 'all' AND ($layer IS NULL OR layer = $layer)
ORDER BY abs(delta) DESC
LIMIT $n
