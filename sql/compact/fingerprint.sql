-- Rows of a table and a sum of their hashes: the same for the same rows, whatever their order.
SELECT count(*), sum(CAST(hash(r) AS HUGEINT))
FROM {table} AS r
