-- Every row belongs to a run of this file.
WITH parts AS (
    SELECT 'saes' AS "table", run_id FROM saes GROUP BY ALL
    UNION ALL
    SELECT 'documents', run_id FROM documents GROUP BY ALL
    UNION ALL
    SELECT 'contexts', run_id FROM contexts GROUP BY ALL
    UNION ALL
    SELECT 'plan_groups', run_id FROM plan_groups GROUP BY ALL
    UNION ALL
    SELECT 'tokens', run_id FROM tokens GROUP BY ALL
    UNION ALL
    SELECT 'token_layers', run_id FROM token_layers GROUP BY ALL
    UNION ALL
    SELECT 'energies', run_id FROM energies GROUP BY ALL
    UNION ALL
    SELECT 'gradients', run_id FROM gradients GROUP BY ALL
    UNION ALL
    SELECT 'document_gradients', run_id FROM document_gradients GROUP BY ALL
    UNION ALL
    SELECT 'activations', run_id FROM activations GROUP BY ALL
    UNION ALL
    SELECT 'feature_moments', run_id FROM feature_moments GROUP BY ALL
    UNION ALL
    SELECT 'feature_statistics', run_id FROM feature_statistics GROUP BY ALL
    UNION ALL
    SELECT 'intervention_settings', run_id FROM intervention_settings GROUP BY ALL
    UNION ALL
    SELECT 'attractor_settings', run_id FROM attractor_settings GROUP BY ALL
)
SELECT p."table", p.run_id
FROM parts AS p
ANTI JOIN runs AS r ON r.run_id = p.run_id
