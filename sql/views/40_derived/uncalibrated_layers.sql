-- The layers that headline figures leave out, in one place.
-- columns as in: layer_energy
CREATE OR REPLACE VIEW uncalibrated_layers AS
SELECT energy, layer, mean, uniform_guess
FROM layer_energy
WHERE category = 'all' AND layer IS NOT NULL AND uncalibrated;
COMMENT ON VIEW uncalibrated_layers IS 'Layers at which a lens of the current run costs more than a uniform guess: it is surer of wrong tokens than no knowledge would be. The report shows them apart and counts them in no total.';
