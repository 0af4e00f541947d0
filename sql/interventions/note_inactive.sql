-- A feature without a patch had nothing to edit in these contexts.
UPDATE intervention_features AS f
SET note = 'It is not active in the contexts of this intervention.'
WHERE f.run_id = $run AND f.intervention_id = $intervention AND f.note IS NULL
    AND NOT EXISTS (
        SELECT 1
        FROM interventions AS i
        WHERE i.run_id = $run AND i.intervention_id = $intervention AND i.feature = f.feature
    )
