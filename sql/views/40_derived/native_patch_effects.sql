-- What single tokens' edits did to a model's own descent, by feature.
-- columns as in: native_patches
CREATE OR REPLACE VIEW native_patch_effects AS
SELECT
    layer,
    feature,
    kind,
    direction,
    count(*) AS n_tokens,
    count(*) FILTER (WHERE is_settled) AS n_settled,
    avg(is_changed::INTEGER) FILTER (WHERE is_settled) AS p_changed,
    avg(distance) FILTER (WHERE is_settled) AS distance,
    avg(delta_energy) AS delta_energy,
    avg(fall_patched - fall) AS delta_fall,
    avg(delta_settled) FILTER (WHERE is_settled) AS delta_settled
FROM native_patches
WHERE run_id = (SELECT run_id FROM current_run)
GROUP BY ALL;
COMMENT ON VIEW native_patch_effects IS 'What edits of single tokens do to an energy transformer''s own descent in the current run, by feature, with directions of the same length beside.';
COMMENT ON COLUMN native_patch_effects.n_tokens IS 'Tokens that were edited, one at a time.';
COMMENT ON COLUMN native_patch_effects.n_settled IS 'Those that settle with the edit and without.';
COMMENT ON COLUMN native_patch_effects.p_changed IS 'Share of these that settle in another basin.';
COMMENT ON COLUMN native_patch_effects.distance IS 'Their mean of 1 minus the cosine of where they settle.';
COMMENT ON COLUMN native_patch_effects.delta_energy IS 'Mean change of native E_t by the edit, before the step.';
COMMENT ON COLUMN native_patch_effects.delta_fall IS 'Mean of by how much more the step lowers E_t with the edit than without: above 0 it speeds the descent.';
COMMENT ON COLUMN native_patch_effects.delta_settled IS 'Mean of E_t where the edited token settles minus where the other does.';
