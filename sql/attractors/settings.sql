-- How the attractors of some layers of the current run were found.
SELECT *
FROM attractor_settings
WHERE run_id = (SELECT run_id FROM current_run) AND layer IN (SELECT unnest($layers::INTEGER[]))
ORDER BY layer, dictionary
