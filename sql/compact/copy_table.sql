-- One table's rows into the new file, in their physical order.
INSERT INTO {copy} ({columns})
SELECT {columns}
FROM {table}
ORDER BY {keys}
