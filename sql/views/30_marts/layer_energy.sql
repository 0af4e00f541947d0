-- How an energy is distributed over the tokens of each layer and category.
CREATE OR REPLACE VIEW layer_energy AS
WITH placed AS (
    SELECT e.run_id, e.energy, e.layer, e.value, e.kl_to_output, p.category, r.model, r.vocabulary_size
    FROM energies AS e
    JOIN current_run AS r USING (run_id)
    JOIN token_places AS p USING (run_id, token_id)
),
grouped AS (
    SELECT
        model,
        energy,
        layer,
        coalesce(category, 'all') AS category,
        count(*) AS n_tokens,
        avg(value) AS mean,
        stddev_pop(value) AS sd,
        avg(kl_to_output) AS kl_to_output,
        quantile_cont(value, [0.05, 0.25, 0.5, 0.75, 0.95]) AS quantiles,
        any_value(run_id) AS run_id,
        any_value(vocabulary_size) AS vocabulary_size
    FROM placed
    GROUP BY GROUPING SETS ((model, energy, layer, category), (model, energy, layer))
)
SELECT
    model,
    energy,
    layer,
    category,
    n_tokens,
    mean,
    sd,
    quantiles[1] AS q05,
    quantiles[2] AS q25,
    quantiles[3] AS median,
    quantiles[4] AS q75,
    quantiles[5] AS q95,
    CASE WHEN x.is_loss THEN ln(vocabulary_size) END AS uniform_guess,
    mean > uniform_guess AS uncalibrated,
    kl_to_output,
    x.units
FROM grouped
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
