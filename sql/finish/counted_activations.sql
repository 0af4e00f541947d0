-- Σã² over counted tokens by feature and document, with ã = a minus its mean over the context's counted tokens:
-- Σa² − (Σa)²/n in each context, since inactive tokens add nothing to either sum.
WITH counted AS (
    SELECT token_id
    FROM token_layers
    WHERE run_id = $run AND layer = $layer AND counted
),
context_sizes AS (
    SELECT token_id // $context_length AS context_id, count(*) AS n
    FROM counted
    GROUP BY ALL
),
context_sums AS (
    SELECT
        feature,
        token_id // $context_length AS context_id,
        fsum(activation) AS sum_a,
        fsum(activation::DOUBLE * activation) AS sum_a2
    FROM activations
    SEMI JOIN counted USING (token_id)
    WHERE run_id = $run AND layer = $layer
    GROUP BY ALL
)
SELECT
    s.feature,
    c.document_id,
    fsum(s.sum_a2 - s.sum_a * s.sum_a / z.n) AS sum_ac2
FROM context_sums AS s
JOIN context_sizes AS z USING (context_id)
JOIN contexts AS c ON c.run_id = $run AND c.context_id = s.context_id
GROUP BY s.feature, c.document_id
ORDER BY s.feature, c.document_id
