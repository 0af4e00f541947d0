SELECT max(run_id)
FROM {table}
