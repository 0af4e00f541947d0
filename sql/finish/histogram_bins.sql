-- Edges of the bins of a and of g, for one layer and energy; those of a first.
SELECT feature, q25, q50, q75, g1, g2, g3, g4, g5, g6, g7
FROM histogram_bins
WHERE run_id = $run AND layer = $layer AND energy = $energy
ORDER BY feature
