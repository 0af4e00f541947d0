-- What the stream counted of some features, group by group, for one layer and energy.
SELECT feature, group_id, inactive, mates_active, mates_inactive
FROM feature_histograms
WHERE run_id = $run AND layer = $layer AND energy = $energy AND feature >= $start AND feature < $stop
