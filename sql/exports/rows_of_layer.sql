-- Rows of {relation} that are of the current run and of a layer, but for that column. {condition} is one of SCOPES.
SELECT * EXCLUDE (layer)
FROM {relation}
WHERE {condition} AND layer IS NOT DISTINCT FROM $layer
{order}
