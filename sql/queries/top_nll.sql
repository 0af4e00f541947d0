-- The features whose activation goes with the nll gradient most strongly, among those that the within-context test
-- believes. Small is not insignificant.
SELECT
    e.layer,
    e.feature,
    e.n_active,
    round(e.score, 3) AS score,
    round(e.ci_low, 3) AS ci_low,
    round(e.ci_high, 3) AS ci_high,
    round(e.z, 1) AS z,
    printf('%.1e', e.q_value) AS q,
    round(e.attribution, 1) AS attribution,
    e.role,
    replace(array_to_string(list_sort(list_distinct(f.top_tokens))[:4], ' | '), chr(10), '\n') AS fires_most_on
FROM efas AS e
JOIN features AS f USING (layer, feature)
WHERE e.energy = 'nll' AND e.gradient = 'decoder' AND e.category = 'all' AND e.q_value < 0.05
ORDER BY abs(e.score) DESC
LIMIT 10
