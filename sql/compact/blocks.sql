-- Blocks of an attached database's file: all, and those that hold nothing.
SELECT total_blocks, free_blocks
FROM pragma_database_size()
WHERE database_name = $database
