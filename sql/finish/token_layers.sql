-- The included tokens of a layer, and which of them the within-context test counts.
SELECT token_id, counted
FROM token_layers
WHERE run_id = $run AND layer = $layer AND included
