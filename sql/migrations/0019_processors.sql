-- Equal processors come to equal numbers, others to the same within rounding: which one it was is worth keeping.

ALTER TABLE plan_groups ADD COLUMN IF NOT EXISTS cpu VARCHAR;
COMMENT ON COLUMN plan_groups.cpu IS 'Kind of processor that computed the group, with the instructions used of it; NULL while it is only planned, and in a group of an older version.';
