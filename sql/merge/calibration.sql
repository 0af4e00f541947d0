-- What a run is measured by, as far as one table holds it.
SELECT {columns}
FROM {table}
WHERE run_id = $run
ORDER BY {keys}
