-- Tables and views with their comments, and whether their rows are of runs and of layers.
SELECT
    r.kind,
    r.name,
    coalesce(r.comment, '') AS comment,
    list(c.column_name ORDER BY c.column_index) AS columns,
    list(coalesce(c.comment, '') ORDER BY c.column_index) AS comments
FROM (
    SELECT 'table' AS kind, table_name AS name, comment
    FROM duckdb_tables()
    WHERE NOT internal AND database_name = current_database() AND schema_name = 'main'
    UNION ALL
    SELECT 'view', view_name, comment
    FROM duckdb_views()
    WHERE NOT internal AND database_name = current_database() AND schema_name = 'main'
) AS r
JOIN duckdb_columns() AS c
    ON c.table_name = r.name AND c.database_name = current_database() AND c.schema_name = 'main'
GROUP BY ALL
ORDER BY r.kind, r.name
