-- What was run: the model, the precision and the seed of the current run, and how far it has come.
SELECT
    r.run_id,
    r.model,
    m.architecture,
    m.n_parameters,
    r.n_layers,
    r.d_model,
    r.vocabulary_size,
    r.context_length,
    r.has_bos,
    r.layers,
    r.energies,
    r.energy_units,
    (
        SELECT list(coalesce(e.source, e.energy) ORDER BY e.position)
        FROM run_energies AS e
        WHERE e.run_id = r.run_id
    ) AS energy_words,
    r.dtype,
    r.seed,
    r.elw_version,
    coalesce((r.settings ->> 'statistics_version')::INTEGER, 1) AS statistics_version,
    r.created_at,
    r.model_sha256,
    (SELECT count(*) FROM documents AS d WHERE d.run_id = r.run_id) AS n_documents,
    (SELECT coalesce(sum(n_tokens), 0)::BIGINT FROM plan_groups AS g WHERE g.run_id = r.run_id) AS planned_tokens,
    (
        SELECT coalesce(sum(n_tokens), 0)::BIGINT
        FROM plan_groups AS g
        WHERE g.run_id = r.run_id AND g.committed_at IS NOT NULL
    ) AS ingested_tokens,
    r.stats_groups,
    r.stats_tokens,
    (SELECT bool_and(source LIKE 'shipped/%') FROM saes AS s WHERE s.run_id = r.run_id) AS has_shipped_saes
FROM current_run AS r
LEFT JOIN models AS m USING (model_sha256)
