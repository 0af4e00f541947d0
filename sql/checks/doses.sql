-- Doses are of patches that are there, each at every dose of its intervention, the feature's own at dose 0 too.
WITH doses AS (
    SELECT run_id, intervention_id, feature, direction, context_id, list(dose ORDER BY dose) AS measured
    FROM intervention_doses
    GROUP BY ALL
),
patches AS (
    SELECT
        i.run_id, i.intervention_id, i.feature, i.direction, i.context_id,
        CASE WHEN s.doses IS NULL THEN [] WHEN i.direction = 0 THEN [0.0] || s.doses ELSE s.doses END AS planned
    FROM interventions AS i
    JOIN intervention_settings AS s USING (run_id, intervention_id)
)
SELECT run_id, intervention_id, feature, direction, context_id, planned, measured
FROM patches
FULL JOIN doses USING (run_id, intervention_id, feature, direction, context_id)
WHERE planned IS NULL OR coalesce(measured, []) <> planned
