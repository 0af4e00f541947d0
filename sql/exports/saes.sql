-- The SAEs of the current run, and how often their features fire.
SELECT
    s.layer,
    s.sae_sha256,
    s.source,
    s.architecture,
    s.d_sae,
    s.hook_name,
    s.hook_name_out,
    t.n_tokens,
    coalesce(a.n_active, 0) AS n_active
FROM saes AS s
JOIN layer_tokens AS t ON t.run_id = s.run_id AND t.layer = s.layer AND t.reason IS NULL
LEFT JOIN (
    SELECT run_id, layer, sum(n_active)::BIGINT AS n_active
    FROM feature_activity
    GROUP BY ALL
) AS a ON a.run_id = s.run_id AND a.layer = s.layer
WHERE s.run_id = (SELECT run_id FROM current_run)
ORDER BY s.layer
