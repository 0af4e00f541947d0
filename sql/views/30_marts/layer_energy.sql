-- How an energy is distributed over the tokens of each layer and category.
CREATE OR REPLACE VIEW layer_energy AS
SELECT
    r.model,
    e.energy,
    e.layer,
    coalesce(e.category, 'all') AS category,
    e.n_tokens,
    e.mean,
    e.sd,
    e.q05,
    e.q25,
    e.median,
    e.q75,
    e.q95,
    CASE WHEN x.is_loss THEN ln(r.vocabulary_size) END AS uniform_guess,
    e.mean > uniform_guess AS uncalibrated,
    e.kl_to_output,
    x.units
FROM layer_energies AS e
JOIN current_run AS r USING (run_id)
LEFT JOIN run_energies AS x USING (run_id, energy);
COMMENT ON VIEW layer_energy IS 'Distribution of each energy of the current run by layer and category. Energies of different layers are not one landscape.';
COMMENT ON COLUMN layer_energy.model IS 'Model of the run.';
COMMENT ON COLUMN layer_energy.energy IS 'Energy.';
COMMENT ON COLUMN layer_energy.layer IS 'Layer at which it is read; NULL for nll, the model''s own output.';
COMMENT ON COLUMN layer_energy.category IS 'A category of documents, or all.';
COMMENT ON COLUMN layer_energy.n_tokens IS 'Tokens with this energy: for nll all that have a next one, else the included ones.';
COMMENT ON COLUMN layer_energy.mean IS 'Mean; for nll the model''s loss in nats per token.';
COMMENT ON COLUMN layer_energy.sd IS 'Standard deviation.';
COMMENT ON COLUMN layer_energy.q05 IS '5 % quantile.';
COMMENT ON COLUMN layer_energy.q25 IS '25 % quantile.';
COMMENT ON COLUMN layer_energy.median IS 'Median.';
COMMENT ON COLUMN layer_energy.q75 IS '75 % quantile.';
COMMENT ON COLUMN layer_energy.q95 IS '95 % quantile.';
COMMENT ON COLUMN layer_energy.uniform_guess IS 'ln V, the cost of a uniform guess in nats; NULL where the energy is not the cost of a guess.';
COMMENT ON COLUMN layer_energy.uncalibrated IS 'Whether the mean is above that: the layer is surer of wrong tokens than no knowledge would be, and its rows stay out of headline tables.';
COMMENT ON COLUMN layer_energy.kl_to_output IS 'Mean KL(p||q) in nats of the model''s own next-token distribution p and the q that a lens reads; NULL for other energies.';
COMMENT ON COLUMN layer_energy.units IS 'Units of the energy.';
