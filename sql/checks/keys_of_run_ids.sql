-- Ids of runs are given out once each.
SELECT 'run_ids' AS "table", 'id' AS columns, id::VARCHAR AS key, count(*) AS n
FROM run_ids
GROUP BY id
HAVING n > 1
