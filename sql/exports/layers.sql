-- Layers of the rows of {relation} that are of the current run; NULL where a row is of none. {condition} is one of SCOPES.
SELECT DISTINCT layer
FROM {relation}
WHERE {condition}
ORDER BY layer NULLS FIRST
