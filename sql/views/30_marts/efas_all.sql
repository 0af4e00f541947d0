-- The same as efas for every run of this file.
-- columns as in: efas_scores
CREATE OR REPLACE VIEW efas_all AS
SELECT * EXCLUDE (half)
FROM efas_scores
WHERE half = 'AB';
COMMENT ON VIEW efas_all IS 'The same as efas for every run of this file.';
