-- Included tokens of a layer with their class and where the plan has their context.
SELECT
    l.token_id,
    list_position(['regex', 'number', 'word', 'code', 'punctuation', 'whitespace', 'other'], t.class) - 1 AS class_code,
    p.group_id * 1_000_000 + p.row AS row_number,
    p.lane,
    c.document_id
FROM token_layers AS l
JOIN tokens AS t USING (run_id, token_id)
JOIN plan AS p ON p.run_id = l.run_id AND p.context_id = l.token_id // $context_length
JOIN contexts AS c ON c.run_id = p.run_id AND c.context_id = p.context_id
WHERE l.run_id = $run AND l.layer = $layer AND l.included AND t.class IS NOT NULL
ORDER BY l.token_id
