-- The same as efas for every run of this file.
-- columns as in: efas
CREATE OR REPLACE VIEW efas_all AS
SELECT
    run_id,
    model,
    layer,
    feature,
    energy,
    gradient,
    category,
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
WHERE half = 'AB';
COMMENT ON VIEW efas_all IS 'The same as efas for every run of this file.';
