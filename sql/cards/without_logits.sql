-- Features of a layer that fire and whose logits are not there; asked before a finish, so of the activations themselves.
SELECT DISTINCT a.feature
FROM activations AS a
WHERE
    a.run_id = $run AND a.layer = $layer
    AND NOT EXISTS (
        FROM logit_histogram AS h
        WHERE h.run_id = $run AND h.layer = $layer AND h.feature = a.feature
    )
ORDER BY a.feature
