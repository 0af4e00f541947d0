-- Rows of {relation} that are of the current run. {condition} is one of SCOPES.
SELECT *
FROM {relation}
WHERE {condition}
{order}
