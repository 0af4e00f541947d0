-- What a feature is and how often it fires.
SELECT
    f.*,
    s.hook_name,
    coalesce(s.hook_name_out, s.hook_name) AS hook_name_out,
    s.architecture,
    s.d_sae,
    t.n_tokens
FROM features AS f
JOIN saes AS s ON s.run_id = (SELECT run_id FROM current_run) AND s.layer = f.layer
JOIN layer_tokens AS t ON t.run_id = s.run_id AND t.layer = f.layer AND t.reason IS NULL
WHERE f.layer = $layer AND f.feature IN (SELECT unnest($features))
ORDER BY f.feature
