-- Entries of the vocabulary that are this text, or have this id, as far as they occur in the current run.
SELECT vocabulary_id, text, count(*) AS n_tokens
FROM tokens
WHERE
    run_id = (SELECT run_id FROM current_run)
    AND ($text IS NULL OR text = $text) AND ($id IS NULL OR vocabulary_id = $id)
GROUP BY ALL
ORDER BY n_tokens DESC, vocabulary_id
