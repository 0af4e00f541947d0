-- What a query can name: tables, views, macros and their columns or parameters, and words of SQL itself.
SELECT kind, name, owner
FROM (
    SELECT 1 AS place, 'table' AS kind, table_name AS name, NULL AS owner
    FROM duckdb_tables()
    WHERE NOT internal
    UNION ALL
    SELECT 2, 'view', view_name, NULL
    FROM duckdb_views()
    WHERE NOT internal
    UNION ALL
    SELECT DISTINCT 3, 'macro', function_name, NULL
    FROM duckdb_functions()
    WHERE NOT internal AND function_type IN ('macro', 'table_macro')
    UNION ALL
    SELECT 4, 'column', column_name, table_name
    FROM duckdb_columns()
    WHERE NOT internal
    UNION ALL
    SELECT 5, 'keyword', keyword_name, keyword_category
    FROM duckdb_keywords()
)
ORDER BY place, owner, name
