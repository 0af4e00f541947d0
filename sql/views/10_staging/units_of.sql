-- The units of an energy of the current run.
CREATE OR REPLACE MACRO units_of(of_energy) AS (
    SELECT energy_units[list_position(energies, of_energy)] FROM runs WHERE is_current
);
COMMENT ON MACRO units_of IS 'units_of(energy): units of an energy of the current run; NULL for one that it has not.';
