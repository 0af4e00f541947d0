-- What interventions did to attractors of later layers, by feature.
-- columns as in: attractor_shifts, intervention_settings, interventions
CREATE OR REPLACE VIEW attractor_shift_effects AS
SELECT
    a.intervention_id,
    s.layer,
    s.kind,
    s.value,
    a.feature,
    a.direction,
    i.control,
    a.later_layer,
    a.place,
    sum(a.n_tokens)::BIGINT AS n_tokens,
    sum(a.n_settled)::BIGINT AS n_settled,
    sum(a.n_changed) / nullif(sum(a.n_settled), 0) AS p_changed,
    sum(a.n_new) / nullif(sum(a.n_changed), 0) AS p_new,
    fsum(a.sum_distance) / nullif(sum(a.n_settled), 0) AS distance,
    fsum(a.sum_hopfield) / nullif(sum(a.n_settled), 0) AS delta_network_energy,
    delta_network_energy AS delta_hopfield
FROM attractor_shifts AS a
JOIN intervention_settings AS s USING (run_id, intervention_id)
JOIN interventions AS i USING (run_id, intervention_id, feature, direction, context_id)
WHERE a.run_id = (SELECT run_id FROM current_run)
GROUP BY ALL;
COMMENT ON VIEW attractor_shift_effects IS 'How often patches of the current run change the basin that tokens fall to at later hooked layers, with control directions of the same norm beside (direction 1 and on).';
COMMENT ON COLUMN attractor_shift_effects.p_changed IS 'Share of settled tokens whose attractor is another one.';
COMMENT ON COLUMN attractor_shift_effects.p_new IS 'Share of these that fall to no attractor of the layer''s sample.';
COMMENT ON COLUMN attractor_shift_effects.distance IS 'Mean of 1 minus the cosine of the two fixed points.';
COMMENT ON COLUMN attractor_shift_effects.delta_network_energy IS 'Mean change from one fixed point to the other of E_H, the energy of the modern Hopfield network whose memories are the decoder rows; not in nats, and not the energy hopfield.';
COMMENT ON COLUMN attractor_shift_effects.delta_hopfield IS 'Deprecated: the older name of delta_network_energy.';
