-- Attractors of each layer, the largest basins first, at most $n of a layer; how many there are in all.
SELECT
    a.layer,
    a.attractor,
    a.type,
    a.n_tokens,
    a.n_tokens / sum(a.n_tokens) OVER (PARTITION BY a.layer) AS share,
    a.perplexity,
    a.energy,
    a.features,
    a.weights,
    a.label,
    a.label_lift,
    a.label_q,
    count(*) OVER (PARTITION BY a.layer) AS n_of_layer
FROM attractors AS a
WHERE a.run_id = (SELECT run_id FROM current_run)
QUALIFY row_number() OVER (PARTITION BY a.layer ORDER BY a.n_tokens DESC, a.attractor) <= $n
ORDER BY a.layer, a.n_tokens DESC, a.attractor
