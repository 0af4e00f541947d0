-- Whether tokens that share a basin of the model's own landscape share something else: the adjusted Rand index, which is
-- 0 by chance and 1 where two partitions are the same (Hubert & Arabie 1985).
-- columns as in: native_settings
CREATE OR REPLACE VIEW native_agreement AS
WITH own AS (
    SELECT weights, token_id, vocabulary_id, category, attractor
    FROM native_basins
    WHERE run_id = (SELECT run_id FROM current_run) AND attractor IS NOT NULL
),
placed AS (
    SELECT o.weights, 'decoder' AS partition, d.layer, o.attractor, d.attractor::VARCHAR AS part
    FROM own AS o
    JOIN basins AS d ON d.token_id = o.token_id
    WHERE d.run_id = (SELECT run_id FROM current_run) AND d.attractor IS NOT NULL
    UNION ALL
    SELECT weights, 'token', NULL, attractor, vocabulary_id::VARCHAR
    FROM own
    UNION ALL
    SELECT weights, 'category', NULL, attractor, category
    FROM own
),
cells AS (
    SELECT weights, partition, layer, attractor, part, count(*) AS n
    FROM placed
    GROUP BY ALL
),
pairs AS (
    SELECT weights, partition, layer, sum(n * (n - 1) / 2) AS both, sum(n) AS n_tokens
    FROM cells
    GROUP BY ALL
),
of_own AS (
    SELECT weights, partition, layer, sum(n * (n - 1) / 2) AS pairs
    FROM (SELECT weights, partition, layer, attractor, sum(n) AS n FROM cells GROUP BY ALL)
    GROUP BY ALL
),
of_others AS (
    SELECT weights, partition, layer, sum(n * (n - 1) / 2) AS pairs
    FROM (SELECT weights, partition, layer, part, sum(n) AS n FROM cells GROUP BY ALL)
    GROUP BY ALL
)
SELECT
    p.weights,
    p.partition,
    p.layer,
    p.n_tokens::BIGINT AS n_tokens,
    p.both / nullif(a.pairs, 0) AS p_shared,
    b.pairs / nullif(p.n_tokens * (p.n_tokens - 1) / 2, 0) AS p_chance,
    (p.both - a.pairs * b.pairs / (p.n_tokens * (p.n_tokens - 1) / 2))
    / nullif((a.pairs + b.pairs) / 2 - a.pairs * b.pairs / (p.n_tokens * (p.n_tokens - 1) / 2), 0) AS adjusted_rand
FROM pairs AS p
JOIN of_own AS a ON a.weights = p.weights AND a.partition = p.partition AND a.layer IS NOT DISTINCT FROM p.layer
JOIN of_others AS b ON b.weights = p.weights AND b.partition = p.partition AND b.layer IS NOT DISTINCT FROM p.layer
WHERE p.n_tokens > 1;
COMMENT ON VIEW native_agreement IS 'Whether tokens of the current run that settle together on an energy transformer''s own landscape also share another partition.';
COMMENT ON COLUMN native_agreement.partition IS 'decoder: basins of the Hopfield network of an SAE''s decoder (basins); token: the vocabulary''s entries; category: of the document.';
COMMENT ON COLUMN native_agreement.layer IS 'Layer of that SAE; NULL for the other partitions.';
COMMENT ON COLUMN native_agreement.n_tokens IS 'Tokens that both have settled.';
COMMENT ON COLUMN native_agreement.p_shared IS 'Share of the pairs of one own basin that the other partition has together too.';
COMMENT ON COLUMN native_agreement.p_chance IS 'Share of all pairs that it has together.';
COMMENT ON COLUMN native_agreement.adjusted_rand IS 'Adjusted Rand index of the two partitions: 0 by chance, 1 where they are the same.';
