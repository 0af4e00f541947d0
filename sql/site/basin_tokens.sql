-- Tokens that fall most often to each attractor, at most $n.
WITH counted AS (
    SELECT b.layer, b.attractor, t.text, count(*) AS n
    FROM basins AS b
    JOIN tokens AS t USING (run_id, token_id)
    WHERE b.run_id = (SELECT run_id FROM current_run) AND b.attractor IS NOT NULL
    GROUP BY ALL
)
SELECT layer, attractor, text, n
FROM counted
QUALIFY row_number() OVER (PARTITION BY layer, attractor ORDER BY n DESC, text) <= $n
ORDER BY layer, attractor, n DESC, text
