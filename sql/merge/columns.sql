-- Columns of a table, without that of the run.
SELECT column_name
FROM duckdb_columns()
WHERE database_name = $database AND schema_name = 'main' AND table_name = $table AND column_name <> 'run_id'
ORDER BY column_index
