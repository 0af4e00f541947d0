-- The run that the public views show. A migration that gives runs a column has to change a line here, so that an older
-- file makes the view anew, with that column and its comment: the last was shard.
-- columns as in: runs
CREATE OR REPLACE VIEW current_run AS
SELECT *
FROM runs
WHERE is_current;
COMMENT ON VIEW current_run IS 'The run that the public views show: the last ingest, or the one chosen by elw runs --use. Columns as in runs.';
