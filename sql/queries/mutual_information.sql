-- @mutual_information: Which features say more about the gradient than a correlation shows, in bits?
-- $energy: whose gradient (VARCHAR, default 'nll')
-- $layer: only of this layer (INTEGER, default NULL)
-- $n: rows (INTEGER, default 20)
SELECT concat(m.layer, ':', m.feature) AS feature, m.n_active, m.mi_excess, m.mi, e.score
FROM mutual_information AS m
JOIN efas AS e USING (run_id, layer, feature, energy, category)
WHERE energy = $energy AND category = 'all' AND e.gradient = 'decoder' AND ($layer IS NULL OR m.layer = $layer)
ORDER BY m.mi_excess DESC NULLS LAST
LIMIT $n
