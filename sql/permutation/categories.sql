-- What a category can be: all, and every category of the current run.
SELECT DISTINCT category
FROM efas
WHERE gradient = 'decoder'
ORDER BY category
