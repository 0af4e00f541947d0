-- Names of the columns of activations, among them one for the gradients of each energy.
SELECT column_name FROM duckdb_columns() WHERE table_name = 'activations' AND schema_name = 'main';
