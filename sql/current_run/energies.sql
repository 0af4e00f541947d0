-- What makes each energy of a run.
SELECT energy, source
FROM run_energies
WHERE run_id = $run
