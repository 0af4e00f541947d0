-- Every energy and its gradient are there for every included token of each layer.
WITH included AS (
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
