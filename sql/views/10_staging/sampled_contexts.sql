-- An eighth of the contexts, by a hash of the seed, the document's text and the context's place in it: the same ones
-- whatever else the corpus holds and however far a run has come. A first hex digit of 0 or 1 is one in eight.
CREATE OR REPLACE VIEW sampled_contexts AS
SELECT c.run_id, c.context_id
FROM contexts AS c
JOIN documents AS d USING (run_id, document_id)
JOIN runs AS r USING (run_id)
WHERE left(sha256(concat_ws(':', r.seed, d.sha256, c.context_index)), 1) IN ('0', '1');
COMMENT ON VIEW sampled_contexts IS 'The hash-chosen eighth of each run''s contexts in which the gradients of inactive features are binned.';
COMMENT ON COLUMN sampled_contexts.run_id IS 'Run.';
COMMENT ON COLUMN sampled_contexts.context_id IS 'Context.';
