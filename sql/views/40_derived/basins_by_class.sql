-- The older name of alignment_by_class, for queries that have it.
-- columns as in: alignment_by_class
CREATE OR REPLACE VIEW basins_by_class AS
SELECT * FROM alignment_by_class;
COMMENT ON VIEW basins_by_class IS 'Deprecated: the older name of alignment_by_class, with the same rows. It holds no basins; those are in basins and attractors.';
