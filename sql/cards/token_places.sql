-- Where a token of the vocabulary occurs: in how many documents and contexts, of how many tokens.
WITH occurrences AS MATERIALIZED (
    SELECT token_id // (SELECT context_length FROM current_run) AS context_id
    FROM tokens
    WHERE run_id = (SELECT run_id FROM current_run) AND vocabulary_id IN (SELECT unnest($ids))
),
counted AS (
    SELECT context_id, count(*) AS n
    FROM occurrences
    GROUP BY context_id
)
SELECT
    sum(o.n)::BIGINT AS n_tokens,
    (SELECT count(*) FROM tokens WHERE run_id = (SELECT run_id FROM current_run)) AS n_all,
    count(DISTINCT d.document_id) AS n_documents,
    count(*) AS n_contexts,
    array_agg(DISTINCT d.category ORDER BY d.category) AS categories
FROM counted AS o
JOIN contexts AS c ON c.run_id = (SELECT run_id FROM current_run) AND c.context_id = o.context_id
JOIN documents AS d ON d.run_id = c.run_id AND d.document_id = c.document_id
