-- The current run as other tools want to know it: the model, the stored contexts, and where the texts are from.
WITH stored AS (
    SELECT c.context_id, c.document_id, c.n_tokens
    FROM current_run AS r
    JOIN plan AS p USING (run_id)
    JOIN plan_groups AS g USING (run_id, group_id)
    JOIN contexts AS c USING (run_id, context_id)
    WHERE g.committed_at IS NOT NULL
)
SELECT
    r.run_id,
    r.identity,
    r.model,
    r.model_sha256,
    r.tokenizer_sha256,
    r.n_layers,
    r.d_model,
    r.vocabulary_size,
    r.context_length,
    r.dtype,
    r.has_bos,
    r.seed,
    r.layers,
    r.energies,
    r.elw_version,
    strftime(r.updated_at, '%Y-%m-%dT%H:%M:%S.%gZ') AS updated_at,
    (SELECT count(*) FROM stored) AS n_contexts,
    (SELECT count(*) FROM stored AS s WHERE s.n_tokens = r.context_length) AS n_full_contexts,
    (SELECT coalesce(sum(n_tokens), 0)::BIGINT FROM stored) AS n_tokens,
    (SELECT count(DISTINCT document_id) FROM stored) AS n_documents,
    (
        SELECT list(DISTINCT regexp_extract(d.source, '^hf:([^/:@?]+/[^/:@?]+)', 1))
        FROM documents AS d
        WHERE d.run_id = r.run_id
    ) AS data_sets
FROM current_run AS r
