-- Features that are active at most of the occurrences of a token, by layer; shares are of its included occurrences.
WITH occurrences AS (
    SELECT l.layer, l.token_id
    FROM tokens AS t
    JOIN token_layers AS l USING (run_id, token_id)
    WHERE t.run_id = (SELECT run_id FROM current_run) AND t.vocabulary_id IN (SELECT unnest($ids)) AND l.included
),
totals AS (
    SELECT layer, count(*) AS n_tokens
    FROM occurrences
    GROUP BY layer
),
fired AS (
    SELECT
        a.layer,
        a.feature,
        count(*) AS n_active,
        avg(a.activation::DOUBLE) AS mean_activation,
        avg(a.{gradient}::DOUBLE) AS mean_g
    FROM activations AS a
    JOIN occurrences AS o ON o.layer = a.layer AND o.token_id = a.token_id
    WHERE a.run_id = (SELECT run_id FROM current_run)
    GROUP BY ALL
)
SELECT
    f.layer,
    f.feature,
    f.n_active,
    t.n_tokens,
    f.n_active / t.n_tokens AS share,
    p.density,
    f.mean_activation,
    f.mean_g,
    p.class,
    p.top_tokens
FROM fired AS f
JOIN totals AS t USING (layer)
JOIN features AS p ON p.layer = f.layer AND p.feature = f.feature
QUALIFY row_number() OVER (PARTITION BY f.layer ORDER BY f.n_active DESC, p.density, f.feature) <= $n
ORDER BY f.layer, f.n_active DESC, p.density, f.feature
