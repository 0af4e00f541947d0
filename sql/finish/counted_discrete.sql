-- Sum over counted tokens of the centred discrete gradient, squared, by document.
SELECT c.document_id, fsum(d.tested * d.tested) AS sum_gc2
FROM centred_discrete AS d
JOIN contexts AS c ON c.run_id = $run AND c.context_id = d.context_id
WHERE d.tested IS NOT NULL
GROUP BY c.document_id
ORDER BY c.document_id
