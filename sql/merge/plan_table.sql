-- Rows of a run in one table, in the order in which they lie there.
SELECT * EXCLUDE ({left_out})
FROM {table}
WHERE run_id = $run
ORDER BY rowid
