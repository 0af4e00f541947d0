UPDATE tokens
SET class = n.class
FROM named_tokens AS n
WHERE tokens.run_id = $run AND tokens.token_id = n.token_id
