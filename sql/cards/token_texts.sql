-- Texts of the tokens that occur in the current run, the most frequent first.
SELECT text
FROM tokens
WHERE run_id = (SELECT run_id FROM current_run)
GROUP BY text
ORDER BY count(*) DESC, text
