-- Whether some row of a table stands behind one with a larger key. Rows come as they lie in the file: a window without
-- an order of its own streams over them and keeps only the row before.
SELECT count(*) > 0
FROM (
    SELECT ({keys}) AS here, lag(({keys})) OVER () AS before
    FROM {table}
)
WHERE here < before
