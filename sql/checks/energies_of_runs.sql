-- A run's energies are listed with the run and in run_energies alike.
WITH listed AS (
    SELECT run_id, unnest(energies) AS energy, unnest(energy_units) AS units, unnest(range(len(energies))) AS position
    FROM runs
)
SELECT run_id, energy, l.units, e.units AS units_of_energy
FROM listed AS l
FULL JOIN run_energies AS e USING (run_id, energy, position)
WHERE l.units IS DISTINCT FROM e.units
