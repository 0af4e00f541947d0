-- From the temporary tables `fired` and `strongest`, which `finish` fills for one layer.
INSERT INTO feature_activity BY NAME
WITH read AS (
    SELECT s.feature, list(t.text ORDER BY s.place) AS top_tokens
    FROM strongest AS s
    JOIN tokens AS t ON t.run_id = $run AND t.token_id = s.token_id
    GROUP BY s.feature
)
SELECT $run AS run_id, $layer AS layer, f.*, r.top_tokens
FROM fired AS f
JOIN read AS r USING (feature)
ORDER BY f.feature
