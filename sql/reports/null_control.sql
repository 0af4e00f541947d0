-- How often the within-context test rejects at 5 % where nothing is true (activations of one context, gradients of
-- another), and how often on the true pairing. The row without a layer holds all layers.
SELECT
    energy,
    is_control(energy) AS is_control,
    layer,
    sum(n_tested)::BIGINT AS n_tested,
    sum(share_rejected * n_tested) / sum(n_tested) AS share_rejected,
    sum(share_rejected_true_pairing * n_tested) / sum(n_tested) AS share_rejected_true_pairing
FROM null_control
WHERE gradient = 'decoder' AND category = 'all'
GROUP BY GROUPING SETS ((energy, layer), (energy))
ORDER BY is_control, energy, layer NULLS LAST
