-- Runs of a file, with what a user tells them apart by.
SELECT
    run_id,
    identity,
    model,
    layers,
    energies,
    dtype,
    shard
FROM runs
ORDER BY run_id
