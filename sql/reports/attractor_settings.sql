-- Attractors by layer: β, basins and their entropy, for the SAE's decoder and for a random dictionary at its own β.
SELECT
    s.layer,
    s.dictionary,
    s.beta,
    s.n_tokens,
    s.n_attractors,
    s.entropy,
    s.largest_share,
    s.perplexity_start,
    s.perplexity,
    s.argmax_agreement,
    s.unconverged_share,
    s.note,
    (
        SELECT count(a.label) FROM attractors AS a
        WHERE a.run_id = s.run_id AND a.layer = s.layer AND s.dictionary = 'decoder'
    ) AS n_labelled
FROM attractor_settings AS s
WHERE s.run_id = (SELECT run_id FROM current_run)
ORDER BY s.layer, s.dictionary
