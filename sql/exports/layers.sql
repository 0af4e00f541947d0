-- Layers of the rows of {relation} that are of the current run; NULL: of none. {condition} is one of SCOPES.
SELECT DISTINCT layer
FROM {relation}
WHERE {condition}
ORDER BY layer NULLS FIRST
