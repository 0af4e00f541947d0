-- Every p and q is a probability, and no q is below its p.
WITH tested AS (
    SELECT 'feature_statistics' AS "table", run_id, layer, feature AS id, energy AS what, category, p_value, q_value
    FROM feature_statistics
    WHERE p_value IS NOT NULL OR q_value IS NOT NULL
    UNION ALL
    SELECT 'feature_statistics, specific', run_id, layer, feature, energy, category, p_specific, q_specific
    FROM feature_statistics
    WHERE p_specific IS NOT NULL OR q_specific IS NOT NULL
    UNION ALL
    SELECT 'feature_statistics, documents', run_id, layer, feature, energy, category, p_documents, q_documents
    FROM feature_statistics
    WHERE p_documents IS NOT NULL OR q_documents IS NOT NULL
    UNION ALL
    SELECT 'feature_classes', run_id, layer, feature, class, labels, p_value, q_value
    FROM feature_classes
    WHERE p_value IS NOT NULL OR q_value IS NOT NULL
    UNION ALL
    SELECT 'attractors', run_id, layer, attractor, label, NULL, label_p, label_q
    FROM attractors
    WHERE label_p IS NOT NULL OR label_q IS NOT NULL
)
SELECT *
FROM tested
WHERE NOT coalesce(p_value >= 0 AND q_value >= p_value AND q_value <= 1, false)
