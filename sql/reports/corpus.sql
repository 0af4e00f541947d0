-- The corpus by category: documents, those that were read at least in part, and tokens planned and ingested.
-- The last row is the whole corpus.
WITH planned AS (
    SELECT
        d.category,
        d.document_id,
        any_value(d.n_dropped_tokens) AS n_dropped,
        coalesce(sum(c.n_tokens), 0) AS n_planned,
        coalesce(sum(c.n_tokens) FILTER (g.committed_at IS NOT NULL), 0) AS n_ingested
    FROM documents AS d
    LEFT JOIN contexts AS c USING (run_id, document_id)
    LEFT JOIN plan AS p USING (run_id, context_id)
    LEFT JOIN plan_groups AS g ON g.run_id = p.run_id AND g.group_id = p.group_id
    WHERE d.run_id = (SELECT run_id FROM current_run)
    GROUP BY d.category, d.document_id
)
SELECT
    CASE WHEN grouping(category) = 0 THEN category END AS category,
    count(*) AS n_documents,
    count(*) FILTER (n_ingested > 0) AS n_documents_read,
    sum(n_planned)::BIGINT AS planned_tokens,
    sum(n_ingested)::BIGINT AS ingested_tokens,
    sum(n_dropped)::BIGINT AS dropped_tokens
FROM planned
GROUP BY ROLLUP (category)
ORDER BY grouping(category), category
