-- Rows of some groups out of an attached warehouse, of a table whose rows name their group.
INSERT INTO {table} (run_id, {columns})
SELECT $run, {columns}
FROM {source}
WHERE run_id = $source_run AND group_id IN (SELECT unnest($groups::INTEGER[]))
ORDER BY {keys}
