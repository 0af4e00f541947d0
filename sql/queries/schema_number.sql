-- The last migration that was applied to the file.
SELECT max(number) FROM schema_migrations;
