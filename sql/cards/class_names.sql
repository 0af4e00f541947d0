-- Classes that features of the current run are of.
SELECT DISTINCT class
FROM features
WHERE class IS NOT NULL
ORDER BY class
