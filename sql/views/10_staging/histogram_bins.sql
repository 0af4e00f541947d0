-- Edges of the bins of activation and gradient. A value lies in the bin above the edges that are below it; on an edge
-- it belongs to the lower bin. Inactive is a bin of its own. The edges of g cut a normal variable into eight bins of
-- equal probability: its mean plus its standard deviation times the normal quantiles of 1/8, 2/8, ... 7/8. FLOAT, as
-- activations and gradients are stored, so that whoever compares them gets the same counts.
CREATE OR REPLACE VIEW histogram_bins AS
SELECT
    c.run_id,
    c.layer,
    c.feature,
    c.energy,
    q.q25,
    q.q50,
    q.q75,
    (c.g_mean - 1.1503493803760083 * c.g_sd)::FLOAT AS g1,
    (c.g_mean - 0.6744897501960817 * c.g_sd)::FLOAT AS g2,
    (c.g_mean - 0.3186393639643752 * c.g_sd)::FLOAT AS g3,
    c.g_mean::FLOAT AS g4,
    (c.g_mean + 0.3186393639643752 * c.g_sd)::FLOAT AS g5,
    (c.g_mean + 0.6744897501960817 * c.g_sd)::FLOAT AS g6,
    (c.g_mean + 1.1503493803760083 * c.g_sd)::FLOAT AS g7
FROM calibration AS c
JOIN activation_quartiles AS q USING (run_id, layer, feature);
COMMENT ON VIEW histogram_bins IS 'Edges of the bins in which mutual_information counts, for every run and each feature with quartiles; a value on an edge belongs to the lower bin.';
COMMENT ON COLUMN histogram_bins.run_id IS 'Run.';
COMMENT ON COLUMN histogram_bins.layer IS 'Layer.';
COMMENT ON COLUMN histogram_bins.feature IS 'Feature.';
COMMENT ON COLUMN histogram_bins.energy IS 'Energy.';
COMMENT ON COLUMN histogram_bins.q25 IS 'Edge between bins 1 and 2 of a: the first quartile of its active values in the SAE''s training. Bin 0 is inactive.';
COMMENT ON COLUMN histogram_bins.q50 IS 'Edge between bins 2 and 3 of a: their median.';
COMMENT ON COLUMN histogram_bins.q75 IS 'Edge between bins 3 and 4 of a: their third quartile.';
COMMENT ON COLUMN histogram_bins.g1 IS 'Edge between bins 1 and 2 of g: its calibration mean plus its standard deviation times the first octile of a normal variable.';
COMMENT ON COLUMN histogram_bins.g2 IS 'Edge between bins 2 and 3 of g, by the second octile.';
COMMENT ON COLUMN histogram_bins.g3 IS 'Edge between bins 3 and 4 of g, by the third octile.';
COMMENT ON COLUMN histogram_bins.g4 IS 'Edge between bins 4 and 5 of g: its mean.';
COMMENT ON COLUMN histogram_bins.g5 IS 'Edge between bins 5 and 6 of g, by the fifth octile.';
COMMENT ON COLUMN histogram_bins.g6 IS 'Edge between bins 6 and 7 of g, by the sixth octile.';
COMMENT ON COLUMN histogram_bins.g7 IS 'Edge between bins 7 and 8 of g, by the seventh octile.';
