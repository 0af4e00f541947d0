-- EFAS of the current run computed on each half of the documents alone, for replication.
-- columns as in: efas
CREATE OR REPLACE VIEW efas_halves AS
SELECT
    run_id,
    model,
    layer,
    feature,
    energy,
    gradient,
    category,
    half,
    n_tokens,
    n_active,
    n_documents,
    score,
    score_active,
    score_within,
    ci_low,
    ci_high,
    z,
    p_value,
    q_value,
    z_null,
    attribution,
    attribution_low,
    attribution_high,
    attribution_curvature,
    role
FROM efas_scores
WHERE half <> 'AB' AND run_id = (SELECT run_id FROM current_run);
COMMENT ON VIEW efas_halves IS 'EFAS of the current run computed on each half of the documents alone, for replication.';
COMMENT ON COLUMN efas_halves.half IS 'A or B: half of the documents of each category.';
