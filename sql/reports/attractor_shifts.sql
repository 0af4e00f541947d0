-- How often patches change the basin that a token falls to at a later layer, over all features of each intervention,
-- beside control directions of the same norm, by their kind.
SELECT
    intervention_id,
    layer,
    kind,
    later_layer,
    place,
    direction > 0 AS is_control,
    control,
    count(DISTINCT feature) AS n_features,
    sum(n_settled)::BIGINT AS n_settled,
    sum(p_changed * n_settled) / sum(n_settled) AS p_changed,
    sum(distance * n_settled) / sum(n_settled) AS distance,
    sum(delta_network_energy * n_settled) / sum(n_settled) AS delta_network_energy
FROM attractor_shift_effects
WHERE n_settled > 0
GROUP BY ALL
ORDER BY intervention_id, later_layer, place, is_control, control DESC
