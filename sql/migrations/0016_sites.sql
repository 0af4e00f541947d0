-- Where in a block an SAE reads, and where a transcoder writes.
ALTER TABLE saes ADD COLUMN IF NOT EXISTS hook_name VARCHAR;
ALTER TABLE saes ADD COLUMN IF NOT EXISTS hook_name_out VARCHAR;
UPDATE saes SET hook_name = 'blocks.' || layer || '.hook_resid_post' WHERE hook_name IS NULL;
COMMENT ON COLUMN saes.layer IS 'Block that the SAE reads.';
COMMENT ON COLUMN saes.hook_name IS 'What the SAE reads, as TransformerLens calls it.';
COMMENT ON COLUMN saes.hook_name_out IS 'What a transcoder makes up, where its features act and gradients are taken; NULL for an SAE.';
