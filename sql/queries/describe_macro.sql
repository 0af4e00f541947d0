-- Parameters and definition of a macro.
SELECT array_to_string(parameters, ', ') AS parameters, macro_definition AS definition
FROM duckdb_functions()
WHERE NOT internal AND function_type IN ('macro', 'table_macro') AND function_name = $name
