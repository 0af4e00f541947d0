-- Every token is read at every hooked layer of its run.
WITH expected AS (
    SELECT r.run_id, r.layers, count(t.token_id) AS n_tokens
    FROM runs AS r
    LEFT JOIN tokens AS t USING (run_id)
    GROUP BY ALL
),
hooked AS (
    SELECT run_id, unnest(layers) AS layer, n_tokens
    FROM expected
),
stored AS (
    SELECT run_id, layer, count(*) AS n_read
    FROM token_layers
    GROUP BY ALL
)
SELECT run_id, layer, h.n_tokens, s.n_read
FROM hooked AS h
FULL JOIN stored AS s USING (run_id, layer)
WHERE coalesce(h.n_tokens, 0) <> coalesce(s.n_read, 0)
