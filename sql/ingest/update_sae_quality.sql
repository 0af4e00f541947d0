-- The pooled figures of a run's SAE, after an evaluation.
UPDATE saes
SET l0 = $l0,
    fvu = $fvu,
    cosine = $cosine,
    dead_share = $dead_share,
    fvu_macro = $fvu_macro,
    dense_share = $dense_share,
    ce_clean = $ce_clean,
    delta_ce = $delta_ce,
    ce_recovered_zero = $ce_recovered_zero,
    ce_recovered_mean = $ce_recovered_mean,
    evaluated_tokens = $evaluated_tokens,
    evaluated_on = $evaluated_on
WHERE run_id = $run AND layer = $layer
