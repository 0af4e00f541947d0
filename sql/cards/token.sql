-- A token of the current run, with what it is.
SELECT t.token_id, t.position, t.vocabulary_id, t.text, t.class
FROM tokens AS t
WHERE t.run_id = (SELECT run_id FROM current_run) AND t.token_id = $token
