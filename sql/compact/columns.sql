-- Columns of a table, in order.
SELECT column_name
FROM duckdb_columns()
WHERE database_name = $database AND schema_name = $schema AND table_name = $table
ORDER BY column_index
