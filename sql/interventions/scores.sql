-- Scores of the run by feature of a layer, over all documents (half AB) or those of one half.
SELECT
    e.feature,
    e.score AS efas,
    abs(e.score) AS abs_efas,
    e.score_active AS efas_active,
    e.attribution / e.n_active AS attribution_per_token,
    m.mi_excess,
    e.n_active / e.n_tokens AS density
FROM efas_scores AS e
LEFT JOIN mutual_information AS m
    ON m.layer = e.layer AND m.feature = e.feature AND m.energy = e.energy AND m.category = e.category AND $half = 'AB'
WHERE e.run_id = $run AND e.layer = $layer AND e.energy = $energy AND e.gradient = 'decoder' AND e.category = 'all'
    AND e.half = $half
ORDER BY e.feature
