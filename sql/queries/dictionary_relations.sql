-- Views, macros and tables with their comments, in the order of the data dictionary.
SELECT kind, name, comment
FROM (
    SELECT 1 AS place, 'Views' AS kind, view_name AS name, comment
    FROM duckdb_views()
    WHERE NOT internal
    UNION ALL
    SELECT 2 AS place, 'Macros' AS kind, function_name AS name, comment
    FROM duckdb_functions()
    WHERE NOT internal AND function_type = 'table_macro'
    UNION ALL
    SELECT 3 AS place, 'Tables' AS kind, table_name AS name, comment
    FROM duckdb_tables()
    WHERE NOT internal
)
ORDER BY place, name
