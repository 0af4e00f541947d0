-- Sums over active tokens by feature and document, for one layer and the decoder gradient of one energy.
-- {gradient} is the quoted column of the energy, e.g. "g_nll". fsum compensates, so that the order in which threads
-- add up cannot be seen in twelve digits.
SELECT
    a.feature,
    c.document_id,
    count(*) AS n_active,
    fsum(a.activation) AS sum_a,
    fsum(a.activation::DOUBLE * a.activation) AS sum_a2,
    fsum(a.activation::DOUBLE * a.{gradient}) AS sum_ag,
    fsum(a.{gradient}) AS active_g,
    fsum(a.{gradient}::DOUBLE * a.{gradient}) AS active_g2
FROM activations AS a
JOIN contexts AS c ON c.run_id = $run AND c.context_id = a.token_id // $context_length
WHERE a.run_id = $run AND a.layer = $layer
GROUP BY a.feature, c.document_id
ORDER BY a.feature, c.document_id
