-- Features by concept class and layer (none: all layers), the same rule with another document's labels, mean nll scores,
-- and what measured ablations did.
SELECT
    class,
    layer,
    n_features,
    share_of_features,
    coalesce(n_by_other_labels, 0) AS n_by_other_labels,
    mean_efas,
    mean_abs_efas,
    n_significant,
    n_ablated,
    mean_shift,
    mean_kl
FROM alignment_by_class
WHERE layer IS NULL
ORDER BY class = 'general', n_features DESC, class
