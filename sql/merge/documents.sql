-- What a plan knows of its documents, without where they lay when it was made.
SELECT document_id, category, half, sha256, n_tokens, n_contexts, n_dropped_tokens
FROM documents
WHERE run_id = $run
ORDER BY document_id
