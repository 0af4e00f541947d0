-- An id that is not among those given out, since rows of before this table have it.
INSERT INTO run_ids BY NAME
SELECT $run AS id, now() AT TIME ZONE 'UTC' AS given_at
WHERE $run NOT IN (SELECT id FROM run_ids)
