-- EFAS of the current run computed on each half of the documents alone, for replication.
-- columns as in: efas_scores
CREATE OR REPLACE VIEW efas_halves AS
SELECT *
FROM efas_scores
WHERE half <> 'AB' AND run_id = (SELECT run_id FROM current_run);
COMMENT ON VIEW efas_halves IS 'EFAS of the current run computed on each half of the documents alone, for replication.';
