-- Columns of a table or view.
SELECT column_name AS "column", data_type AS type, comment
FROM duckdb_columns()
WHERE NOT internal AND table_name = $name
ORDER BY column_index
