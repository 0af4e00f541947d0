-- Which energies of the current run are positive controls. The name stands outside of the subquery, as in units_of.
CREATE OR REPLACE MACRO is_control(of_energy) AS (
    SELECT map(list(energy), list(is_control))
    FROM run_energies
    WHERE run_id = (SELECT run_id FROM runs WHERE is_current)
)[of_energy];
COMMENT ON MACRO is_control IS 'is_control(energy): whether features are aligned with an energy of the current run by construction; NULL for one that it has not.';
