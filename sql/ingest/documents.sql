SELECT document_id, path, category, half, sha256, source, n_contexts
FROM documents
WHERE run_id = $run
ORDER BY document_id
