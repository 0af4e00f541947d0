-- Documents may be rows of tables and of data sets, not files alone.

COMMENT ON COLUMN documents.path IS 'Path below the given root, for a row with its number or id; the smallest where texts have equal content.';
COMMENT ON COLUMN documents.sha256 IS 'sha256 of the file, or of a row''s text in UTF-8.';
COMMENT ON COLUMN documents.source IS 'Where the text was when it was planned: the file; rows:FILE?row=N&column=C; or hf:OWNER/NAME with its revision and row.';
COMMENT ON COLUMN documents.n_bytes IS 'Size of the file, or of a row''s text in UTF-8.';
