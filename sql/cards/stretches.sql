-- The text around tokens, each within its context, with one energy of every token; no energy where there is none.
WITH chosen AS (
    SELECT
        u.token_id,
        u.place,
        c.context_id,
        c.n_tokens AS length,
        d.document_id,
        d.path,
        d.category,
        c.context_id * r.context_length AS first_id
    FROM (SELECT unnest($tokens) AS token_id, generate_subscripts($tokens, 1) AS place) AS u
    CROSS JOIN current_run AS r
    JOIN contexts AS c ON c.run_id = r.run_id AND c.context_id = u.token_id // r.context_length
    JOIN documents AS d ON d.run_id = r.run_id AND d.document_id = c.document_id
),
around AS (
    SELECT
        place,
        unnest(range(greatest(first_id, token_id - $before), least(first_id + length - 1, token_id + $after) + 1)) AS token_id
    FROM chosen
),
valued AS (
    SELECT e.token_id, e.value
    FROM energies AS e
    WHERE
        e.run_id = (SELECT run_id FROM current_run) AND e.energy = $energy AND e.layer IS NOT DISTINCT FROM $layer
        AND e.token_id IN (SELECT token_id FROM around)
),
read AS (
    SELECT
        w.place,
        min(w.token_id) AS first_shown,
        list(t.text ORDER BY w.token_id) AS texts,
        list(e.value ORDER BY w.token_id) AS "values"
    FROM around AS w
    JOIN tokens AS t ON t.run_id = (SELECT run_id FROM current_run) AND t.token_id = w.token_id
    LEFT JOIN valued AS e ON e.token_id = w.token_id
    GROUP BY w.place
)
SELECT
    c.token_id,
    c.context_id,
    c.document_id,
    c.path,
    c.category,
    (c.token_id - c.first_id)::INTEGER AS position,
    (c.token_id - r.first_shown)::INTEGER AS mark,
    r.texts,
    r."values"
FROM chosen AS c
JOIN read AS r USING (place)
ORDER BY place
