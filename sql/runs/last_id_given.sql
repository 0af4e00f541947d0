SELECT max(id)
FROM run_ids
