-- Tables of a database, and which tables of the same schema each refers to by foreign keys.
SELECT
    t.schema_name,
    t.table_name,
    t.estimated_size AS n_rows,
    (t.sql ILIKE '%GENERATED ALWAYS%') AS has_generated,
    coalesce(list(DISTINCT c.referenced_table) FILTER (c.constraint_type = 'FOREIGN KEY'), []) AS refers_to
FROM duckdb_tables() AS t
LEFT JOIN duckdb_constraints() AS c USING (database_name, schema_name, table_name)
WHERE t.database_name = $database AND NOT t.internal
GROUP BY ALL
ORDER BY t.schema_name, t.table_name
