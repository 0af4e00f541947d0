-- The same for the discrete gradient, over the tokens where it is defined.
SELECT
    a.feature,
    c.document_id,
    count(*) AS n_active,
    fsum(a.activation) AS sum_a,
    fsum(a.activation::DOUBLE * a.activation) AS sum_a2,
    fsum(a.activation::DOUBLE * g.discrete) AS sum_ag,
    fsum(g.discrete) AS active_g,
    fsum(g.discrete::DOUBLE * g.discrete) AS active_g2
FROM activations AS a
JOIN gradients AS g ON g.run_id = $run AND g.layer = $layer AND g.energy = $energy AND g.token_id = a.token_id
JOIN contexts AS c ON c.run_id = $run AND c.context_id = a.token_id // $context_length
WHERE a.run_id = $run AND a.layer = $layer AND g.discrete IS NOT NULL
GROUP BY a.feature, c.document_id
ORDER BY a.feature, c.document_id
