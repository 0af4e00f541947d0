-- All tokens of committed contexts, in order, each with its id in the vocabulary and the place of its class in token_classes.CLASSES.
SELECT
    t.token_id,
    t.vocabulary_id,
    list_position(['regex', 'number', 'word', 'code', 'punctuation', 'whitespace', 'other'], t.class) - 1 AS class_code
FROM tokens AS t
WHERE t.run_id = $run
ORDER BY t.token_id
