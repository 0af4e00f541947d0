-- What editing a feature did, and what predicted it, beside control directions of the same norm.
SELECT
    e.feature,
    e.intervention_id,
    e.kind,
    e.value,
    e.direction,
    e.control,
    e.n_contexts,
    e.n_documents,
    e.n_edited,
    e.delta,
    e.delta_low,
    e.delta_high,
    e.delta_per_token,
    e.kl_per_token,
    e.top_changed_edited,
    e.first_order,
    e.norm_curvature,
    e.aligned,
    e.blended
FROM intervention_effects AS e
WHERE e.layer = $layer AND e.feature IN (SELECT unnest($features)) AND e.category = 'all'
ORDER BY e.feature, e.intervention_id, e.direction
