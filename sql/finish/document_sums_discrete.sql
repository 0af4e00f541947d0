-- Tokens with a discrete gradient, its sums, and that of the centred one, squared, over counted tokens, by document, for
-- the layer and energy that finish/centre_discrete prepared.
SELECT
    c.document_id,
    count(*) AS n_tokens,
    fsum(d.discrete) AS sum_g,
    fsum(d.discrete::DOUBLE * d.discrete) AS sum_g2,
    coalesce(fsum(d.tested * d.tested), 0) AS sum_gc2
FROM centred_discrete AS d
JOIN contexts AS c ON c.run_id = $run AND c.context_id = d.context_id
GROUP BY c.document_id
ORDER BY c.document_id
