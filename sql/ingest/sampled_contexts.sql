SELECT context_id
FROM sampled_contexts
WHERE run_id = $run
