-- @surprising_tokens: Which tokens does the model predict worst, behind which one, and where?
-- $category: only of documents of this one (VARCHAR, default NULL)
-- $n: rows (INTEGER, default 20)
WITH losses AS (
    SELECT token_id, max(value) AS nll
    FROM energies
    WHERE energy = 'nll' AND run_id = (SELECT run_id FROM current_run)
    GROUP BY token_id
)
SELECT l.nll, p.text AS behind, t.text AS token, p.document_position + 1 AS document_position, p.category, p.path
FROM losses AS l
JOIN token_places AS p USING (token_id)
JOIN tokens AS t ON t.run_id = p.run_id AND t.token_id = p.token_id + 1
WHERE p.run_id = (SELECT run_id FROM current_run) AND ($category IS NULL OR p.category = $category)
ORDER BY l.nll DESC
LIMIT $n
