-- The units of an energy of the current run. The name stands outside of the subquery, or a column called energy would
-- be taken for that of run_energies.
CREATE OR REPLACE MACRO units_of(of_energy) AS (
    SELECT map(list(energy), list(units)) FROM run_energies WHERE run_id = (SELECT run_id FROM runs WHERE is_current)
)[of_energy];
COMMENT ON MACRO units_of IS 'units_of(energy): units of an energy of the current run; NULL for one that it has not.';
