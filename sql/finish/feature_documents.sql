-- What the stream kept by feature and document of some features, group by group, for one layer and energy.
SELECT feature, document_id, sum_s, sum_g2, sum_norm2, sum_a2h2
FROM feature_documents
WHERE run_id = $run AND layer = $layer AND energy = $energy AND feature >= $start AND feature < $stop
