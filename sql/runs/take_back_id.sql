UPDATE run_ids
SET deleted_at = now() AT TIME ZONE 'UTC'
WHERE id = $run
