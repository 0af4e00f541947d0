-- @feature_scores: How does one feature go with each energy, and would it hold in other documents?
-- $layer: its layer (INTEGER)
-- $feature: its number (INTEGER)
-- $category: of documents (VARCHAR, default 'all')
SELECT
    energy, gradient, n_active, n_documents, score, ci_low, ci_high, cosine, t_specific, q_specific, z, q_value,
    q_documents, attribution, role
FROM efas
WHERE layer = $layer AND feature = $feature AND category = $category
ORDER BY energy, gradient
