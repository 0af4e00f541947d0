-- Tables, views and macros with their comments.
SELECT kind, name, comment
FROM (
    SELECT 1 AS place, 'table' AS kind, table_name AS name, comment
    FROM duckdb_tables()
    WHERE NOT internal
    UNION ALL
    SELECT 2, 'view', view_name, comment
    FROM duckdb_views()
    WHERE NOT internal
    UNION ALL
    SELECT 3, 'macro', function_name, comment
    FROM duckdb_functions()
    WHERE NOT internal AND function_type IN ('macro', 'table_macro')
)
ORDER BY place, name
