-- Activations above $above of a range of a layer's features in contexts of full length, as delphi orders them.
WITH rows AS (
    SELECT c.context_id, (row_number() OVER (ORDER BY c.context_id) - 1)::INTEGER AS row
    FROM current_run AS r
    JOIN plan AS p USING (run_id)
    JOIN plan_groups AS g USING (run_id, group_id)
    JOIN contexts AS c USING (run_id, context_id)
    WHERE g.committed_at IS NOT NULL AND c.n_tokens = r.context_length
)
SELECT
    w.row,
    (a.token_id % r.context_length)::INTEGER AS position,
    a.feature - $first AS latent,
    a.activation
FROM activations AS a
JOIN current_run AS r USING (run_id)
JOIN rows AS w ON w.context_id = a.token_id // r.context_length
WHERE
    a.layer = $layer AND a.feature BETWEEN $first AND $last AND a.activation > $above
    AND ($features IS NULL OR a.feature IN (SELECT unnest($features)))
ORDER BY a.token_id, a.feature
