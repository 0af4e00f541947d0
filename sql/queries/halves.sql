-- @halves: Do the scores of one half of the documents come again in the other?
-- $energy: whose gradient (VARCHAR, default 'nll')
SELECT a.layer, count(*) AS features, corr(a.score, b.score) AS agreement
FROM efas_halves AS a
JOIN efas_halves AS b USING (layer, feature, energy, gradient, category)
WHERE a.half = 'A' AND b.half = 'B' AND energy = $energy AND gradient = 'decoder' AND category = 'all'
    AND isfinite(a.score) AND isfinite(b.score)
GROUP BY a.layer
ORDER BY a.layer
