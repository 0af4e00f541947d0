-- How each energy is distributed over tokens, by layer and category. The row without a category holds all of them;
-- an energy without a layer is the model's own output.
SELECT
    energy,
    is_control(energy) AS is_control,
    layer,
    CASE WHEN category <> 'all' THEN category END AS category,
    n_tokens,
    mean,
    sd,
    q05,
    q25,
    median,
    q75,
    q95,
    uniform_guess,
    uncalibrated AS is_uncalibrated,
    kl_to_output,
    units
FROM layer_energy
ORDER BY is_control, energy, layer, category NULLS LAST
