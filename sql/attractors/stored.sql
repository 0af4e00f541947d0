-- Attractors of a layer and the β at which they were found.
SELECT s.beta, list(a.vector ORDER BY a.attractor)
FROM attractor_settings AS s
JOIN attractors AS a USING (run_id, layer)
WHERE s.run_id = $run AND s.layer = $layer AND s.dictionary = 'decoder'
GROUP BY s.beta
