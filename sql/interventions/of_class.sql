-- Features of a layer that are of a concept class.
SELECT feature
FROM features
WHERE layer = $layer AND class = $class_name
ORDER BY feature
