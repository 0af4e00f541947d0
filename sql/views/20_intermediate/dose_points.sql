-- Patches that were measured at every dose, with what they did at each; dose 1 is the patch of interventions itself.
-- columns as in: intervention_doses, interventions
CREATE OR REPLACE VIEW dose_points AS
WITH points AS (
    SELECT run_id, intervention_id, feature, direction, context_id, 1.0 AS dose, delta_edited, delta_later, kl_edited, kl_later, failure
    FROM interventions
    WHERE (run_id, intervention_id) IN (
        SELECT (run_id, intervention_id)
        FROM intervention_settings
        WHERE doses IS NOT NULL
    )
    UNION ALL BY NAME
    SELECT *
    FROM intervention_doses
)
SELECT
    p.run_id,
    p.intervention_id,
    p.feature,
    i.control,
    p.direction,
    p.context_id,
    p.dose,
    p.delta_edited,
    p.delta_edited + p.delta_later AS delta_total,
    -- Rounding may take it below 0 where there is nothing to measure, at dose 0 above all.
    CASE WHEN p.dose = 0 THEN abs(p.kl_edited + p.kl_later) ELSE p.kl_edited + p.kl_later END AS kl
FROM points AS p
JOIN interventions AS i USING (run_id, intervention_id, feature, direction, context_id)
WHERE NOT EXISTS (
    SELECT 1
    FROM points AS f
    WHERE f.run_id = p.run_id AND f.intervention_id = p.intervention_id AND f.feature = p.feature AND f.direction = p.direction
        AND f.context_id = p.context_id AND f.failure IS NOT NULL
);
COMMENT ON VIEW dose_points IS 'What each patch of every run did at each dose, of patches that were measured at all of them; for interventions with --dose.';
COMMENT ON COLUMN dose_points.dose IS 'Factor of the change; 1: the edit itself. 0: no edit, and every number of x at edited tokens moved by one unit in its last place: what rounding does.';
COMMENT ON COLUMN dose_points.delta_edited IS 'Change of the loss summed over the edited tokens of the context, in nats.';
COMMENT ON COLUMN dose_points.delta_total IS 'The same over later tokens too.';
COMMENT ON COLUMN dose_points.kl IS 'KL divergence over edited and later tokens, in nats; at dose 0 its size, since rounding has either sign.';
