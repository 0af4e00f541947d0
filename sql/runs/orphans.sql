-- Runs that are gone and left rows behind, as far as the smaller tables show it.
SELECT run_id
FROM documents
UNION
SELECT run_id
FROM plan_groups
UNION
SELECT run_id
FROM saes
UNION
SELECT run_id
FROM tokens
EXCEPT
SELECT run_id
FROM runs
ORDER BY run_id
