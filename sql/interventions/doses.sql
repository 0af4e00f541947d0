-- Patches that were measured at every dose, with what they did at each; dose 0 is what rounding does.
WITH points AS (
    SELECT feature, direction, context_id, 1.0 AS dose, delta_edited, delta_later, kl_edited, kl_later, failure
    FROM interventions
    WHERE run_id = $run AND intervention_id = $intervention
    UNION ALL
    SELECT feature, direction, context_id, dose, delta_edited, delta_later, kl_edited, kl_later, failure
    FROM intervention_doses
    WHERE run_id = $run AND intervention_id = $intervention
)
SELECT
    p.feature,
    i.control,
    p.direction,
    p.context_id,
    c.document_id,
    p.dose,
    abs(p.delta_edited) AS delta_edited,
    abs(p.delta_edited + p.delta_later) AS delta_total,
    -- Rounding may take it below 0 where there is nothing to measure, at dose 0 above all.
    CASE WHEN p.dose = 0 THEN abs(p.kl_edited + p.kl_later) ELSE p.kl_edited + p.kl_later END AS kl
FROM points AS p
JOIN interventions AS i
    ON i.run_id = $run AND i.intervention_id = $intervention AND i.feature = p.feature AND i.direction = p.direction
    AND i.context_id = p.context_id
JOIN contexts AS c ON c.run_id = $run AND c.context_id = p.context_id
WHERE NOT EXISTS (
    SELECT 1
    FROM points AS f
    WHERE f.feature = p.feature AND f.direction = p.direction AND f.context_id = p.context_id AND f.failure IS NOT NULL
)
ORDER BY p.feature, p.direction, p.context_id, p.dose
