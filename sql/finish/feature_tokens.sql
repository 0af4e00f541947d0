-- From the temporary table `fired_on`, which is filled for one layer. A token of the vocabulary has one text in a run.
INSERT INTO feature_tokens BY NAME
WITH texts AS (
    SELECT vocabulary_id, any_value(text) AS text
    FROM tokens
    WHERE run_id = $run AND vocabulary_id IN (SELECT vocabulary_id FROM fired_on)
    GROUP BY vocabulary_id
)
SELECT $run AS run_id, $layer AS layer, f.*, t.text
FROM fired_on AS f
JOIN texts AS t USING (vocabulary_id)
ORDER BY f.feature, f.place
