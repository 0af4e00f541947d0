-- @sae_quality: How much do the SAEs leave out, and what does that cost the model, on documents they never saw?
-- $category: of documents (VARCHAR, default 'all')
SELECT layer, n_tokens, l0, fvu, cosine, dead_share, delta_ce, ce_recovered_zero
FROM sae_quality
WHERE run_id = (SELECT run_id FROM current_run) AND category = $category
ORDER BY layer
