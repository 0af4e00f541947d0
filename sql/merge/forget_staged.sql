DELETE FROM staged_groups
WHERE run_id = $run AND group_id IN (SELECT unnest($groups::INTEGER[]))
