-- A BOS token may stand before the text of every context: it is stored, attended to and excluded.

ALTER TABLE runs ADD COLUMN IF NOT EXISTS has_bos BOOLEAN DEFAULT false;
COMMENT ON COLUMN runs.has_bos IS 'Whether every context begins with the tokenizer''s BOS token, which is then its position 0.';
COMMENT ON COLUMN contexts.first_token IS 'Offset of the context''s text in the document''s tokens.';
COMMENT ON COLUMN contexts.n_tokens IS 'Tokens of the context, with BOS where the run has it.';
COMMENT ON COLUMN token_layers.reason IS 'Why not: first token, BOS, massive norm, special token, no next token; NULL when included.';
COMMENT ON COLUMN layer_tokens.reason IS 'Why they are excluded: first token, BOS, massive norm, special token or no next token; NULL for the included ones.';
