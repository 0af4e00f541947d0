-- Everything that a database file defines, in words: what must be equal before and after. Numbers that DuckDB gives to
-- things as it opens a file are left out, and so is its guess at the number of rows.
WITH
tables AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name|estimated_size'))
    FROM duckdb_tables() WHERE database_name = $database AND NOT internal
),
columns AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name'))
    FROM duckdb_columns() WHERE database_name = $database AND NOT internal
),
views AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name|is_bound'))
    FROM duckdb_views() WHERE database_name = $database AND NOT internal
),
constraints AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name|constraint_index'))
    FROM duckdb_constraints() WHERE database_name = $database
),
macros AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name'))
    FROM duckdb_functions() WHERE database_name = $database AND NOT internal
),
sequences AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name'))
    FROM duckdb_sequences() WHERE database_name = $database
),
indexes AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name'))
    FROM duckdb_indexes() WHERE database_name = $database
),
types AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name'))
    FROM duckdb_types() WHERE database_name = $database AND NOT internal
),
schemas AS (
    SELECT COLUMNS(lambda c: NOT regexp_full_match(c, '.*oid|database_name'))
    FROM duckdb_schemas() WHERE database_name = $database AND NOT internal
)
SELECT 'table' AS kind, table_name AS name, CAST(t AS VARCHAR) AS definition FROM tables AS t
UNION ALL
SELECT 'column', concat_ws('.', table_name, column_name), CAST(t AS VARCHAR) FROM columns AS t
UNION ALL
SELECT 'view', view_name, CAST(t AS VARCHAR) FROM views AS t
UNION ALL
SELECT 'constraint', concat_ws('.', table_name, constraint_text), CAST(t AS VARCHAR) FROM constraints AS t
UNION ALL
SELECT 'macro', function_name, CAST(t AS VARCHAR) FROM macros AS t
UNION ALL
SELECT 'sequence', sequence_name, CAST(t AS VARCHAR) FROM sequences AS t
UNION ALL
SELECT 'index', index_name, CAST(t AS VARCHAR) FROM indexes AS t
UNION ALL
SELECT 'type', type_name, CAST(t AS VARCHAR) FROM types AS t
UNION ALL
SELECT 'schema', schema_name, CAST(t AS VARCHAR) FROM schemas AS t
ORDER BY ALL
