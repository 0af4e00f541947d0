-- Every committed token with the document that it stands in.
-- columns as in: tokens, contexts, documents
CREATE OR REPLACE VIEW token_places AS
SELECT
    t.run_id,
    t.token_id,
    t.position,
    t.vocabulary_id,
    t.text,
    t.class,
    c.context_id,
    d.document_id,
    d.path,
    d.category,
    d.half,
    CASE WHEN NOT r.has_bos OR t.position > 0 THEN c.first_token + t.position - r.has_bos::INTEGER END AS document_position
FROM tokens AS t
JOIN runs AS r USING (run_id)
JOIN contexts AS c ON c.run_id = t.run_id AND c.context_id = t.token_id // r.context_length
JOIN documents AS d ON d.run_id = t.run_id AND d.document_id = c.document_id;
COMMENT ON VIEW token_places IS 'Tokens of every run with their context and document.';
COMMENT ON COLUMN token_places.document_position IS 'Place within the document''s tokens, from 0; NULL for BOS.';
