-- What is lost when a connection closes: temporary tables and views, and further databases.
SELECT table_name AS name
FROM duckdb_tables()
WHERE temporary AND NOT internal
UNION ALL
SELECT view_name
FROM duckdb_views()
WHERE temporary AND NOT internal
UNION ALL
SELECT database_name
FROM duckdb_databases()
WHERE NOT internal AND database_name <> current_database()
