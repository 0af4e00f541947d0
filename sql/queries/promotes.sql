-- @promotes: Which features promote or suppress tokens with this text in them, by the direct path to the logits?
-- $text: part of a token, in any case (VARCHAR)
-- $direction: promoted or suppressed (VARCHAR, default 'promoted')
-- $n: rows (INTEGER, default 20)
SELECT concat(l.layer, ':', l.feature) AS feature, l.text AS token, l.logit, l.place, f.density, f.top_tokens[:3] AS fires_on
FROM feature_logits AS l
JOIN features AS f USING (layer, feature)
WHERE l.run_id = (SELECT run_id FROM current_run) AND l.direction = $direction AND contains(lower(l.text), lower($text))
ORDER BY abs(l.logit) DESC
LIMIT $n
