-- Included tokens, the summed gradient vector and the summed square of gradients of each document, for one layer and
-- energy.
SELECT document_id, group_id, n_tokens, gradient_sum, sum_norm2
FROM document_gradients
WHERE run_id = $run AND layer = $layer AND energy = $energy
ORDER BY document_id, group_id
