-- @categories: Where does one category of documents differ from the rest?
-- $energy: whose gradient (VARCHAR, default 'nll')
-- $category: only this one (VARCHAR, default NULL)
-- $n: rows (INTEGER, default 20)
SELECT e.category, concat(e.layer, ':', e.feature) AS feature, e.n_active, e.score, w.score AS score_of_all, e.t_specific, e.q_specific
FROM efas AS e
JOIN efas AS w USING (run_id, layer, feature, energy, gradient)
WHERE e.energy = $energy AND e.gradient = 'decoder' AND e.category <> 'all' AND w.category = 'all' AND e.q_specific < 0.05
    AND ($category IS NULL OR e.category = $category)
ORDER BY abs(e.t_specific) DESC
LIMIT $n
