-- Mean of each energy over the occurrences of a token, with its 95 % interval across documents (from 10 of them), beside
-- the mean over all tokens; at layers, of included ones. The interval is that of a ratio of sums over documents; Student's t by Cornish and Fisher.
WITH occurrences AS MATERIALIZED (
    SELECT token_id
    FROM tokens
    WHERE run_id = (SELECT run_id FROM current_run) AND vocabulary_id IN (SELECT unnest($ids))
),
read_at AS MATERIALIZED (
    SELECT o.token_id, l.layer
    FROM occurrences AS o
    JOIN token_layers AS l ON l.token_id = o.token_id
    WHERE l.run_id = (SELECT run_id FROM current_run) AND l.included
    UNION ALL
    SELECT token_id, -1
    FROM occurrences
),
by_context AS MATERIALIZED (
    SELECT
        e.energy,
        e.layer,
        e.token_id // (SELECT context_length FROM current_run) AS context_id,
        count(*) AS n,
        sum(e.value::DOUBLE) AS total
    FROM read_at AS o
    JOIN energies AS e ON e.token_id = o.token_id AND coalesce(e.layer, -1) = o.layer
    WHERE e.run_id = (SELECT run_id FROM current_run)
    GROUP BY ALL
),
by_document AS (
    SELECT b.energy, b.layer, c.document_id, sum(b.n) AS n, sum(b.total) AS total
    FROM by_context AS b
    JOIN contexts AS c ON c.context_id = b.context_id
    WHERE c.run_id = (SELECT run_id FROM current_run)
    GROUP BY ALL
),
residuals AS (
    SELECT *, sum(total) OVER cell / sum(n) OVER cell AS mean
    FROM by_document
    WINDOW cell AS (PARTITION BY energy, layer)
),
means AS (
    SELECT
        energy,
        layer,
        sum(n)::BIGINT AS n_tokens,
        count(*) AS n_documents,
        any_value(mean) AS mean,
        CASE
            WHEN count(*) >= 10
                THEN sqrt(sum((total - n * mean) ** 2) * count(*) / (count(*) - 1)) / sum(n)
        END AS standard_error,
        1.959964 + 2.372271 / (count(*) - 1) + 2.822499 / (count(*) - 1) ** 2 AS quantile
    FROM residuals
    GROUP BY energy, layer
)
SELECT
    m.energy,
    m.layer,
    r.units,
    m.n_tokens,
    m.n_documents,
    m.mean,
    m.mean - m.quantile * m.standard_error AS mean_low,
    m.mean + m.quantile * m.standard_error AS mean_high,
    l.mean AS mean_all
FROM means AS m
JOIN run_energies AS r ON r.run_id = (SELECT run_id FROM current_run) AND r.energy = m.energy
LEFT JOIN layer_energy AS l
    ON l.energy = m.energy AND l.layer IS NOT DISTINCT FROM m.layer AND l.category = 'all'
ORDER BY r.position, m.layer
