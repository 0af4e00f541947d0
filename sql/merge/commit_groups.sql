-- Groups as stored, each with the processor that computed it.
UPDATE plan_groups
SET committed_at = now() AT TIME ZONE 'UTC', cpu = taken.cpu
FROM (SELECT unnest($groups::INTEGER[]) AS group_id, unnest($cpus::VARCHAR[]) AS cpu) AS taken
WHERE plan_groups.run_id = $run AND plan_groups.group_id = taken.group_id AND plan_groups.committed_at IS NULL
