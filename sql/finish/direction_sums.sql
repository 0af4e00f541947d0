-- Sums of some features along shared directions, group by group, for one layer and energy.
SELECT feature, group_id, scale, along
FROM feature_directions
WHERE run_id = $run AND layer = $layer AND energy = $energy AND feature >= $start AND feature < $stop
