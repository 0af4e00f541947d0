-- A group is staged in one place.
SELECT 'staged_groups' AS "table", 'run_id, group_id' AS columns, concat_ws(':', run_id, group_id) AS key, count(*) AS n
FROM staged_groups
GROUP BY run_id, group_id
HAVING n > 1
