-- Every committed token with the document that it stands in.
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
    c.first_token + t.position AS document_position
FROM tokens AS t
JOIN runs AS r USING (run_id)
JOIN contexts AS c ON c.run_id = t.run_id AND c.context_id = t.token_id // r.context_length
JOIN documents AS d ON d.run_id = t.run_id AND d.document_id = c.document_id;
COMMENT ON VIEW token_places IS 'Tokens of every run with their context and document.';
COMMENT ON COLUMN token_places.run_id IS 'Run.';
COMMENT ON COLUMN token_places.token_id IS 'Token.';
COMMENT ON COLUMN token_places.position IS 'Place within the context, from 0.';
COMMENT ON COLUMN token_places.vocabulary_id IS 'Id in the model''s vocabulary.';
COMMENT ON COLUMN token_places.text IS 'The token''s text.';
COMMENT ON COLUMN token_places.class IS 'Concept class; NULL until classes are assigned.';
COMMENT ON COLUMN token_places.context_id IS 'Context.';
COMMENT ON COLUMN token_places.document_id IS 'Document.';
COMMENT ON COLUMN token_places.path IS 'Name of the document.';
COMMENT ON COLUMN token_places.category IS 'Category of the document.';
COMMENT ON COLUMN token_places.half IS 'Half of the document.';
COMMENT ON COLUMN token_places.document_position IS 'Place within the document''s tokens, from 0.';
