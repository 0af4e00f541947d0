-- The histogram of what a feature adds to logits, over the vocabulary.
SELECT feature, low, high, counts
FROM logit_histogram
WHERE run_id = (SELECT run_id FROM current_run) AND layer = $layer AND feature IN (SELECT unnest($features))
ORDER BY feature
