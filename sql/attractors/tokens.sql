-- Included tokens of some contexts at a layer, with what labels are taken from.
SELECT l.token_id, t.text, d.half, d.category
FROM token_layers AS l
JOIN tokens AS t USING (run_id, token_id)
JOIN contexts AS c ON c.run_id = l.run_id AND c.context_id = l.token_id // $context_length
JOIN documents AS d ON d.run_id = c.run_id AND d.document_id = c.document_id
WHERE l.run_id = $run AND l.layer = $layer AND l.included
    AND c.context_id IN (SELECT unnest($contexts::INTEGER[]))
ORDER BY l.token_id
