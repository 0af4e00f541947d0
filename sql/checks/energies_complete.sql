-- Every energy is there for each token that it is read at, and its gradient for each included one.
WITH sizes AS (
    SELECT run_id, token_id // context_length AS context_id, count(*) AS n_tokens
    FROM tokens
    JOIN runs USING (run_id)
    GROUP BY ALL
),
-- What is read once, at the model's output, is there for every token that has a next one in its context.
followed AS (
    SELECT run_id, sum(n_tokens - 1) AS n_followed
    FROM sizes
    GROUP BY ALL
),
output_valued AS (
    SELECT run_id, energy, count(*) AS n_values
    FROM energies
    WHERE layer IS NULL
    GROUP BY ALL
),
included AS (
    SELECT run_id, layer, count(*) AS n_included
    FROM token_layers
    WHERE included
    GROUP BY ALL
),
valued AS (
    SELECT run_id, energy, layer, count(*) AS n_values
    FROM energies
    WHERE layer IS NOT NULL
    GROUP BY ALL
),
graded AS (
    SELECT run_id, energy, layer, count(*) AS n_gradients
    FROM gradients
    GROUP BY ALL
)
SELECT run_id, energy, layer, n_included, n_values, n_gradients
FROM included AS i
JOIN run_energies AS e USING (run_id)
LEFT JOIN valued AS v USING (run_id, energy, layer)
LEFT JOIN graded AS g USING (run_id, energy, layer)
WHERE n_gradients IS DISTINCT FROM n_included OR (e.at_layers AND n_values IS DISTINCT FROM n_included)
UNION ALL
SELECT run_id, energy, NULL, n_followed, n_values, NULL
FROM followed AS f
JOIN run_energies AS e USING (run_id)
LEFT JOIN output_valued AS v USING (run_id, energy)
WHERE NOT e.at_layers AND n_values IS DISTINCT FROM n_followed
