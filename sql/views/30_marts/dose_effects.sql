-- What patches did at each dose, over the features of an intervention: the curve behind the exponents.
-- columns as in: intervention_settings
CREATE OR REPLACE VIEW dose_effects AS
SELECT
    p.intervention_id,
    s.layer,
    s.kind,
    s.value,
    p.feature,
    p.control,
    p.dose,
    count(*) AS n_patches,
    favg(p.delta_total) AS delta,
    favg(abs(p.delta_edited)) AS delta_edited_size,
    favg(abs(p.delta_total)) AS delta_total_size,
    favg(p.kl) AS kl
FROM dose_points AS p
JOIN intervention_settings AS s USING (run_id, intervention_id)
WHERE p.run_id = (SELECT run_id FROM current_run)
GROUP BY ALL;
COMMENT ON VIEW dose_effects IS 'Mean over patches of what interventions of the current run did at each dose, by feature and kind of direction; for interventions with --dose.';
COMMENT ON COLUMN dose_effects.feature IS 'Feature.';
COMMENT ON COLUMN dose_effects.control IS 'NULL: along the feature''s own decoder row. Else the kind of control directions, taken together.';
COMMENT ON COLUMN dose_effects.dose IS 'Factor of the change; 1: the edit itself. 0: no edit, and every number of x at edited tokens moved by one unit in its last place: what rounding does.';
COMMENT ON COLUMN dose_effects.n_patches IS 'Patches that were measured at every dose.';
COMMENT ON COLUMN dose_effects.delta IS 'Mean change of the loss over edited and later tokens of a context, in nats.';
COMMENT ON COLUMN dose_effects.delta_edited_size IS 'Mean size of the change over the edited tokens of a context, in nats: the measure delta_edited.';
COMMENT ON COLUMN dose_effects.delta_total_size IS 'Mean size of the change over edited and later tokens of a context, in nats: the measure delta_total.';
COMMENT ON COLUMN dose_effects.kl IS 'Mean KL divergence over edited and later tokens of a context, in nats; at dose 0 its mean size, since rounding has either sign.';
