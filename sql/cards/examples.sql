-- Examples with the text around them: of each token its text, the feature's activation (0 where it is not active) and,
-- where it is, the decoder gradient {gradient}.
WITH told AS (
    SELECT
        i.run_id,
        i.feature,
        i."interval",
        i.low,
        i.high,
        i.n_tokens,
        unnest(i.token_ids) AS token_id,
        generate_subscripts(i.token_ids, 1) AS place
    FROM activation_intervals AS i
    WHERE
        i.run_id = (SELECT run_id FROM current_run) AND i.layer = $layer AND i.feature IN (SELECT unnest($features))
),
chosen AS (
    SELECT t.*, c.context_id, c.n_tokens AS length, d.document_id, d.path, d.category, c.context_id * r.context_length AS first_id
    FROM told AS t
    JOIN current_run AS r USING (run_id)
    JOIN contexts AS c ON c.run_id = t.run_id AND c.context_id = t.token_id // r.context_length
    JOIN documents AS d ON d.run_id = t.run_id AND d.document_id = c.document_id
    WHERE t.place <= CASE WHEN t."interval" = 0 THEN $n_top ELSE $n_each END
),
around AS (
    SELECT
        feature,
        "interval",
        place,
        unnest(range(greatest(first_id, token_id - $before), least(first_id + length - 1, token_id + $after) + 1)) AS token_id
    FROM chosen
),
fired AS (
    SELECT a.feature, a.token_id, a.activation, a.{gradient} AS g
    FROM activations AS a
    WHERE
        a.run_id = (SELECT run_id FROM current_run) AND a.layer = $layer AND a.feature IN (SELECT unnest($features))
),
read AS (
    SELECT
        w.feature,
        w."interval",
        w.place,
        min(w.token_id) AS first_shown,
        list(t.text ORDER BY w.token_id) AS texts,
        list(coalesce(f.activation, 0) ORDER BY w.token_id) AS activations,
        list(f.g ORDER BY w.token_id) AS gradients,
        list(e.value ORDER BY w.token_id) AS losses
    FROM around AS w
    JOIN tokens AS t ON t.run_id = (SELECT run_id FROM current_run) AND t.token_id = w.token_id
    LEFT JOIN fired AS f ON f.feature = w.feature AND f.token_id = w.token_id
    LEFT JOIN energies AS e
        ON e.run_id = t.run_id AND e.token_id = w.token_id AND e.energy = 'nll'
    GROUP BY ALL
)
SELECT
    c.feature,
    c."interval",
    c.place,
    c.low,
    c.high,
    c.n_tokens,
    c.token_id,
    c.context_id,
    c.document_id,
    c.path,
    c.category,
    c.token_id - c.first_id AS position,
    r.first_shown - c.first_id AS first_position,
    (c.token_id - r.first_shown)::INTEGER AS mark,
    r.texts,
    r.activations,
    r.gradients,
    r.losses
FROM chosen AS c
JOIN read AS r USING (feature, "interval", place)
ORDER BY c.feature, c."interval", c.place
