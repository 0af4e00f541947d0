-- Occurrences of a token from that with the least energy to that with the most, evenly spaced by rank; those without the
-- energy, when no occurrence has it.
WITH occurrences AS (
    SELECT t.token_id, e.value
    FROM tokens AS t
    LEFT JOIN energies AS e
        ON e.run_id = t.run_id AND e.token_id = t.token_id AND e.energy = $energy
        AND e.layer IS NOT DISTINCT FROM $layer
    WHERE t.run_id = (SELECT run_id FROM current_run) AND t.vocabulary_id IN (SELECT unnest($ids))
),
ranked AS (
    SELECT
        token_id,
        value,
        row_number() OVER (ORDER BY value, token_id) - 1 AS place,
        count(*) OVER () AS n
    FROM occurrences
    WHERE value IS NOT NULL OR (SELECT count(value) FROM occurrences) = 0
)
SELECT token_id
FROM ranked
WHERE place IN (SELECT round(i * (n - 1) / greatest(1, $n - 1))::BIGINT FROM unnest(range($n)) AS u(i))
ORDER BY value DESC, token_id
