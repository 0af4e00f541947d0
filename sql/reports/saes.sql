-- The sparse autoencoder of each layer: its quality as stored with it, and how many of its features fire in this run.
WITH firing AS (
    SELECT layer, count(DISTINCT feature) FILTER (n_active > 0) AS n_firing
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all'
    GROUP BY layer
)
SELECT
    s.layer,
    s.hook_name,
    s.hook_name_out,
    s.architecture,
    s.d_sae,
    s.k,
    s.fvu,
    s.fvu_macro,
    s.cosine,
    s.l0,
    s.dead_share,
    s.ce_recovered_mean,
    s.delta_ce,
    coalesce(f.n_firing, 0) AS n_firing,
    s.norm_median,
    s.sae_sha256
FROM saes AS s
LEFT JOIN firing AS f USING (layer)
WHERE s.run_id = (SELECT run_id FROM current_run)
ORDER BY s.layer
