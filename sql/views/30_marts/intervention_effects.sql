-- What interventions on single features did, by category: sums over the patches of each feature.
-- columns as in: intervention_settings, intervention_features, interventions, effect_statistics
CREATE OR REPLACE VIEW intervention_effects AS
WITH patches AS (
    SELECT i.*, d.document_id, unnest(['all', d.category]) AS category
    FROM interventions AS i
    JOIN contexts AS c USING (run_id, context_id)
    JOIN documents AS d USING (run_id, document_id)
    WHERE i.run_id = (SELECT run_id FROM current_run) AND i.failure IS NULL
),
sums AS (
    SELECT
        run_id,
        intervention_id,
        feature,
        direction,
        control,
        category,
        count(*) AS n_contexts,
        count(DISTINCT document_id) AS n_documents,
        sum(n_edited)::BIGINT AS n_edited,
        sum(n_later)::BIGINT AS n_later,
        fsum(delta_edited + delta_later) AS delta,
        fsum(delta_edited) AS delta_edited,
        fsum(delta_later) AS delta_later,
        fsum(kl_edited + kl_later) AS kl,
        sum(top_changed_edited) AS n_top_changed_edited,
        sum(top_changed_later) AS n_top_changed_later,
        fsum(first_order) AS first_order,
        fsum(norm_curvature) AS norm_curvature,
        fsum(aligned_scale) AS aligned_scale,
        fsum(aligned_share) AS aligned_share,
        fsum(blended_gradient) AS blended_gradient,
        fsum(blended_scale) AS blended_scale,
        fsum(blended_share) AS blended_share
    FROM patches
    GROUP BY ALL
),
drawn AS (
    -- A feature's share of the probes' gradients, drawn towards the mean of all features as by 10 tokens.
    SELECT
        *,
        (aligned_share + 10 * sum(aligned_share) OVER features / sum(n_edited) OVER features) / (n_edited + 10)
            AS aligned_rho,
        (blended_share + 10 * sum(blended_share) OVER features / sum(n_edited) OVER features) / (n_edited + 10)
            AS blended_rho
    FROM sums
    WINDOW features AS (PARTITION BY run_id, intervention_id, direction, category)
)
SELECT
    intervention_id,
    s.layer,
    s.kind,
    s.value,
    s.edited,
    feature,
    direction,
    control,
    category,
    drawn.n_contexts,
    n_documents,
    n_edited,
    n_later,
    delta,
    delta_edited,
    delta_later,
    delta / n_edited AS delta_per_token,
    e.delta_low,
    e.delta_high,
    kl,
    kl / n_edited AS kl_per_token,
    n_top_changed_edited / n_edited AS top_changed_edited,
    n_top_changed_later / nullif(n_later, 0) AS top_changed_later,
    first_order,
    norm_curvature,
    first_order + aligned_rho * aligned_scale AS aligned,
    blended_gradient + blended_rho * blended_scale AS blended
FROM drawn
JOIN intervention_settings AS s USING (run_id, intervention_id)
LEFT JOIN effect_statistics AS e USING (run_id, intervention_id, feature, direction, category);
COMMENT ON VIEW intervention_effects IS 'Measured effects of interventions of the current run, by feature and category; direction 0 is the feature itself, others are control directions of the same norm.';
COMMENT ON COLUMN intervention_effects.category IS 'A category of documents, or all.';
COMMENT ON COLUMN intervention_effects.n_contexts IS 'Contexts with an edited token.';
COMMENT ON COLUMN intervention_effects.n_documents IS 'Documents with an edited token.';
COMMENT ON COLUMN intervention_effects.n_edited IS 'Edited tokens.';
COMMENT ON COLUMN intervention_effects.n_later IS 'Tokens after the first edited one of their context that are not edited.';
COMMENT ON COLUMN intervention_effects.delta IS 'Measured change of the loss, summed over edited and later tokens, in nats; above 0 the model got worse.';
COMMENT ON COLUMN intervention_effects.delta_edited IS 'The part of edited tokens.';
COMMENT ON COLUMN intervention_effects.delta_later IS 'The part of later tokens.';
COMMENT ON COLUMN intervention_effects.delta_per_token IS 'delta over edited tokens, in nats.';
COMMENT ON COLUMN intervention_effects.delta_low IS 'Lower end of its 95 % interval across documents (jackknife); NULL with fewer than 15 documents.';
COMMENT ON COLUMN intervention_effects.delta_high IS 'Upper end of that interval.';
COMMENT ON COLUMN intervention_effects.kl IS 'KL divergence of the patched next-token distributions from the model''s own, summed, in nats.';
COMMENT ON COLUMN intervention_effects.kl_per_token IS 'kl over edited tokens.';
COMMENT ON COLUMN intervention_effects.top_changed_edited IS 'Share of edited tokens at which the likeliest next token is another one.';
COMMENT ON COLUMN intervention_effects.top_changed_later IS 'Share of later tokens at which it is.';
COMMENT ON COLUMN intervention_effects.first_order IS 'Predicted delta, to first order.';
COMMENT ON COLUMN intervention_effects.norm_curvature IS 'Predicted delta with curvature that grows with the edit; NULL without probes.';
COMMENT ON COLUMN intervention_effects.aligned IS 'Predicted delta: first_order, and curvature by the feature''s mean share of the probes'' gradients; NULL without probes.';
COMMENT ON COLUMN intervention_effects.blended IS 'As aligned, with the mean of two gradients; NULL without 2 probes, and unless the edit is an ablation.';
