"""The DuckDB side: connections, migrations, runs, the plan of an ingest, queries and their output."""
