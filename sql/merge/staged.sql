-- Groups of a run whose rows lie in a stage.
SELECT group_id, location
FROM staged_groups
WHERE run_id = $run
ORDER BY group_id
