DROP TABLE groups_of_cells
