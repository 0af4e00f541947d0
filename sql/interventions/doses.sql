-- Patches that were measured at every dose, with the size of what they did at each; dose 0 is what rounding does.
SELECT
    p.feature,
    p.control,
    p.direction,
    p.context_id,
    c.document_id,
    p.dose,
    abs(p.delta_edited) AS delta_edited,
    abs(p.delta_total) AS delta_total,
    p.kl
FROM dose_points AS p
JOIN contexts AS c USING (run_id, context_id)
WHERE p.run_id = $run AND p.intervention_id = $intervention
ORDER BY p.feature, p.direction, p.context_id, p.dose
