CREATE OR REPLACE TEMP TABLE named_tokens (token_id BIGINT, class VARCHAR)
