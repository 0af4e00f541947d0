-- Rows of some groups out of an attached warehouse, of a table whose rows name their token, and so their context.
INSERT INTO {table} (run_id, {columns})
SELECT $run, {columns}
FROM {source}
WHERE run_id = $source_run AND token_id // $context_length IN (
    SELECT context_id
    FROM main.plan
    WHERE run_id = $run AND group_id IN (SELECT unnest($groups::INTEGER[]))
)
ORDER BY {keys}
