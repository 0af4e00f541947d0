-- Tokens with a discrete gradient, and its sums, by document, for one layer and energy.
SELECT
    c.document_id,
    count(*) AS n_tokens,
    fsum(g.discrete) AS sum_g,
    fsum(g.discrete::DOUBLE * g.discrete) AS sum_g2
FROM gradients AS g
JOIN contexts AS c ON c.run_id = $run AND c.context_id = g.token_id // $context_length
WHERE g.run_id = $run AND g.layer = $layer AND g.energy = $energy AND g.discrete IS NOT NULL
GROUP BY c.document_id
ORDER BY c.document_id
