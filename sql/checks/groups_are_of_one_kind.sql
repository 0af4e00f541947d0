-- The contexts of a group are of its category and half, and those of a row are of different documents.
WITH placed AS (
    SELECT p.run_id, p.group_id, p.row, d.document_id, d.category <> g.category OR d.half <> g.half AS is_foreign
    FROM plan AS p
    JOIN plan_groups AS g USING (run_id, group_id)
    JOIN contexts AS c USING (run_id, context_id)
    JOIN documents AS d USING (run_id, document_id)
)
SELECT run_id, group_id, "row", count(*) FILTER (is_foreign) AS n_foreign, count(*) - count(DISTINCT document_id) AS n_again
FROM placed
GROUP BY ALL
HAVING n_foreign > 0 OR n_again > 0
