-- Energy-feature alignment score of every feature of the current run, by energy, gradient and category.
-- columns as in: efas_scores
CREATE OR REPLACE VIEW efas AS
SELECT * EXCLUDE (half)
FROM efas_scores
WHERE half = 'AB' AND run_id = (SELECT run_id FROM current_run);
COMMENT ON VIEW efas IS 'Energy-feature alignment score of every feature of the current run, by energy, gradient and category.';
