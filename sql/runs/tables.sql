-- Tables whose rows belong to runs.
SELECT table_name
FROM duckdb_columns()
SEMI JOIN duckdb_tables() USING (database_name, schema_name, table_name)
WHERE column_name = 'run_id' AND database_name = current_database() AND schema_name = 'main'
ORDER BY table_name
