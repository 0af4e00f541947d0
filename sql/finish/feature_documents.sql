-- What the stream kept by feature and document, summed over groups, for one layer and energy.
SELECT
    feature,
    document_id,
    fsum(sum_s::DOUBLE) AS sum_s,
    fsum(sum_g2::DOUBLE) AS sum_g2,
    fsum(sum_norm2::DOUBLE) AS sum_norm2,
    fsum(sum_a2h2::DOUBLE) AS sum_a2h2
FROM feature_documents
WHERE run_id = $run AND layer = $layer AND energy = $energy
GROUP BY feature, document_id
ORDER BY feature, document_id
