-- Nothing is inserted; fails for a column that is generated from others.
INSERT INTO {copy} ({column})
SELECT {column}
FROM {table}
LIMIT 0
