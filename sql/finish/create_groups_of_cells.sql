CREATE OR REPLACE TEMP TABLE groups_of_cells (group_id INTEGER, cell INTEGER)
