-- Documents, contexts, their places in the plan, and tokens have one row each.
SELECT 'documents' AS "table", 'run_id, document_id' AS columns, concat_ws(':', run_id, document_id) AS key, count(*) AS n
FROM documents
GROUP BY run_id, document_id
HAVING n > 1
UNION ALL
SELECT 'document_aliases' AS "table", 'run_id, path' AS columns, concat_ws(':', run_id, path) AS key, count(*) AS n
FROM document_aliases
GROUP BY run_id, path
HAVING n > 1
UNION ALL
SELECT 'contexts' AS "table", 'run_id, context_id' AS columns, concat_ws(':', run_id, context_id) AS key, count(*) AS n
FROM contexts
GROUP BY run_id, context_id
HAVING n > 1
UNION ALL
SELECT 'plan' AS "table", 'run_id, context_id' AS columns, concat_ws(':', run_id, context_id) AS key, count(*) AS n
FROM plan
GROUP BY run_id, context_id
HAVING n > 1
UNION ALL
SELECT 'plan_groups' AS "table", 'run_id, group_id' AS columns, concat_ws(':', run_id, group_id) AS key, count(*) AS n
FROM plan_groups
GROUP BY run_id, group_id
HAVING n > 1
UNION ALL
SELECT 'tokens' AS "table", 'run_id, token_id' AS columns, concat_ws(':', run_id, token_id) AS key, count(*) AS n
FROM tokens
GROUP BY run_id, token_id
HAVING n > 1
