-- One energy at one layer, or at none.
SELECT token_id, value, kl_to_output
FROM energies
WHERE run_id = $run AND energy = $energy AND layer IS NOT DISTINCT FROM $layer::SMALLINT
ORDER BY token_id
