-- What has to be equal for the same numbers: the run's identity and versions, and sha256 of what it was made from. That
-- of the corpus is of its documents' own, sorted, a line each.
SELECT
    r.identity,
    r.elw_version,
    coalesce((r.settings ->> 'statistics_version')::INTEGER, 1) AS statistics_version,
    (SELECT max(number) FROM schema_migrations) AS schema_number,
    r.model_sha256,
    r.tokenizer_sha256,
    (SELECT list(s.layer ORDER BY s.layer) FROM saes AS s WHERE s.run_id = r.run_id) AS sae_layers,
    (SELECT list(s.sae_sha256 ORDER BY s.layer) FROM saes AS s WHERE s.run_id = r.run_id) AS sae_sha256s,
    (SELECT count(*) FROM documents AS d WHERE d.run_id = r.run_id) AS n_documents,
    (
        SELECT sha256(string_agg(d.sha256, chr(10) ORDER BY d.sha256))
        FROM documents AS d
        WHERE d.run_id = r.run_id
    ) AS corpus_sha256
FROM current_run AS r
