-- Included tokens and the summed gradient vector of each document, for one layer and energy.
SELECT document_id, group_id, n_tokens, gradient_sum
FROM document_gradients
WHERE run_id = $run AND layer = $layer AND energy = $energy
ORDER BY document_id, group_id
