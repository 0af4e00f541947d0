-- What defines each view and macro of the file.
SELECT view_name AS name, sql AS definition
FROM duckdb_views()
WHERE NOT internal AND database_name = current_database()
UNION ALL
SELECT function_name, concat_ws(' ', array_to_string(parameters, ' '), macro_definition)
FROM duckdb_functions()
WHERE NOT internal AND function_type IN ('macro', 'table_macro') AND database_name = current_database()
