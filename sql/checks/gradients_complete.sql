-- Every activation has the decoder gradient of each energy of its run, and of no other.
WITH counted AS (
    SELECT run_id, count(*) AS n_activations, count(COLUMNS('^(g_.*)$')) AS '\1'
    FROM activations
    GROUP BY run_id
),
filled AS (
    SELECT run_id, substr(gradient, 3) AS energy, n_activations, n_gradients
    FROM (UNPIVOT counted ON COLUMNS('^g_') INTO NAME gradient VALUE n_gradients)
)
SELECT f.run_id, f.energy, f.n_activations, f.n_gradients
FROM filled AS f
LEFT JOIN run_energies AS e ON e.run_id = f.run_id AND e.energy = f.energy
WHERE f.n_gradients <> CASE WHEN e.energy IS NOT NULL THEN f.n_activations ELSE 0 END
