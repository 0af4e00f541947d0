-- Features at the tokens of contexts: at each token those with the largest |a g|, at most $n, and all that are among
-- ($layers, $features); how many are active there in all. {gradient} is the column of an energy's decoder gradient.
WITH told AS (
    SELECT unnest($layers) AS layer, unnest($features) AS feature
),
read AS (
    SELECT
        a.token_id,
        a.layer,
        a.feature,
        a.activation,
        a.{gradient} AS g,
        row_number() OVER (
            PARTITION BY a.token_id ORDER BY abs(a.activation * a.{gradient}) DESC NULLS LAST, a.layer, a.feature
        ) AS place,
        count(*) OVER (PARTITION BY a.token_id) AS n_active
    FROM activations AS a
    JOIN current_run AS r USING (run_id)
    WHERE a.token_id // r.context_length IN (SELECT unnest($contexts))
)
SELECT read.token_id, read.layer, read.feature, read.activation, read.g, read.n_active
FROM read
WHERE read.place <= $n OR (read.layer, read.feature) IN (SELECT (layer, feature) FROM told)
ORDER BY read.token_id, read.place
