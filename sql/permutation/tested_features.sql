-- The features that efas tests in a category, with what it finds.
SELECT layer, energy, feature, z, p_value, q_value
FROM efas
WHERE run_id = $run AND gradient = 'decoder' AND category = $category AND q_value IS NOT NULL
ORDER BY layer, energy, feature
