-- Mean of each energy over the occurrences of a token, with its 95 % interval across documents (from 10 of them), beside
-- the mean over all tokens; at layers, of included ones. The interval is that of a ratio of sums over documents; Student's t by Cornish and Fisher.
WITH occurrences AS (
    SELECT t.run_id, t.token_id, c.document_id
    FROM tokens AS t
    JOIN current_run AS r USING (run_id)
    JOIN contexts AS c ON c.run_id = t.run_id AND c.context_id = t.token_id // r.context_length
    WHERE t.vocabulary_id IN (SELECT unnest($ids))
),
by_document AS (
    SELECT e.energy, e.layer, o.document_id, count(*) AS n, sum(e.value::DOUBLE) AS total
    FROM occurrences AS o
    JOIN energies AS e USING (run_id, token_id)
    LEFT JOIN token_layers AS i ON i.run_id = e.run_id AND i.layer = e.layer AND i.token_id = e.token_id
    WHERE e.layer IS NULL OR i.included
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
