-- Statistics of version 3: is it this direction, and which documents? Runs of before have NULL in what is new here.

CREATE TABLE IF NOT EXISTS reference_rows (
    run_id  INTEGER  NOT NULL,
    layer   SMALLINT NOT NULL,
    feature INTEGER  NOT NULL
);
COMMENT ON TABLE  reference_rows IS 'Features whose decoder rows stand beside every other one''s in the test of the direction (t_specific): a seeded choice among those that fired in the SAE''s training, drawn before the first group.';
COMMENT ON COLUMN reference_rows.run_id IS 'Run.';
COMMENT ON COLUMN reference_rows.layer IS 'Layer.';
COMMENT ON COLUMN reference_rows.feature IS 'Feature whose row it is.';

CREATE TABLE IF NOT EXISTS feature_directions (
    run_id   INTEGER   NOT NULL,
    group_id INTEGER   NOT NULL,
    layer    SMALLINT  NOT NULL,
    feature  INTEGER   NOT NULL,
    energy   VARCHAR   NOT NULL,
    scale    FLOAT     NOT NULL,
    along    TINYINT[] NOT NULL
);
COMMENT ON TABLE  feature_directions IS 'Of one group: minus the sum over counted tokens of a times the centred gradient, along directions that all features of the layer share. Only features that are active there. Appended, never updated.';
COMMENT ON COLUMN feature_directions.run_id IS 'Run.';
COMMENT ON COLUMN feature_directions.group_id IS 'Group.';
COMMENT ON COLUMN feature_directions.layer IS 'Layer.';
COMMENT ON COLUMN feature_directions.feature IS 'Feature.';
COMMENT ON COLUMN feature_directions.energy IS 'Energy.';
COMMENT ON COLUMN feature_directions.scale IS 'What a unit of along is worth, in activation units times units of the energy per residual unit.';
COMMENT ON COLUMN feature_directions.along IS 'Inner products with the layer''s reference_rows, made unit vectors, in the order of their features, then with random orthonormal directions drawn from the run''s seed; times scale.';

CREATE TABLE IF NOT EXISTS feature_documents (
    run_id      INTEGER  NOT NULL,
    group_id    INTEGER  NOT NULL,
    document_id INTEGER  NOT NULL,
    layer       SMALLINT NOT NULL,
    feature     INTEGER  NOT NULL,
    energy      VARCHAR  NOT NULL,
    sum_s       FLOAT    NOT NULL,
    sum_g2      FLOAT    NOT NULL,
    sum_norm2   FLOAT    NOT NULL,
    sum_a2h2    FLOAT
);
COMMENT ON TABLE  feature_documents IS 'Sums over a document''s contexts of one group that cannot be computed again from stored tables; only of features that are active there. Appended, never updated.';
COMMENT ON COLUMN feature_documents.run_id IS 'Run.';
COMMENT ON COLUMN feature_documents.group_id IS 'Group.';
COMMENT ON COLUMN feature_documents.document_id IS 'Document.';
COMMENT ON COLUMN feature_documents.layer IS 'Layer.';
COMMENT ON COLUMN feature_documents.feature IS 'Feature.';
COMMENT ON COLUMN feature_documents.energy IS 'Energy.';
COMMENT ON COLUMN feature_documents.sum_s IS 'Sum over contexts of S_c = sum of a times centred g.';
COMMENT ON COLUMN feature_documents.sum_g2 IS 'Sum of g^2 over the included tokens of the contexts in which the feature is active, at its inactive tokens too.';
COMMENT ON COLUMN feature_documents.sum_norm2 IS 'Sum of |dE/dx|^2 over the same tokens. What the document''s other contexts have of g^2 is taken to go with theirs.';
COMMENT ON COLUMN feature_documents.sum_a2h2 IS 'Sum of a^2 h^2 over active tokens with h a probe''s decoder gradient; NULL without probes.';

ALTER TABLE document_gradients ADD COLUMN IF NOT EXISTS sum_norm2 DOUBLE;
COMMENT ON COLUMN document_gradients.sum_norm2 IS 'Sum of |dE/dx|^2 over the same tokens.';

-- FLOAT: nothing is added up from these, and a file holds a quarter of a million of each.
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS sum_i2 FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS i_quantile FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS q_attribution FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS cosine FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS t_specific FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS p_specific FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS q_specific FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS p_reference FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS n_s_documents INTEGER;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS sum_sd2 FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS p_documents FLOAT;
ALTER TABLE feature_statistics ADD COLUMN IF NOT EXISTS q_documents FLOAT;
COMMENT ON COLUMN feature_statistics.sum_u2 IS 'Runs of before version 3 of the statistics: sum over documents of U_d^2, the document''s share of the covariance. NULL in later ones.';
COMMENT ON COLUMN feature_statistics.sum_i2 IS 'Sum over documents of I_d^2, the document''s influence on the correlation; NULL where documents are too few for an interval.';
COMMENT ON COLUMN feature_statistics.i_quantile IS '97.5 % quantile of Student''s t with (sum of I_d^2)^2 / sum of I_d^4 degrees of freedom: the number of documents that the correlation rests on.';
COMMENT ON COLUMN feature_statistics.t_quantile IS '97.5 % quantile of Student''s t with n_documents - 1 degrees of freedom, for the interval of attribution.';
COMMENT ON COLUMN feature_statistics.q_attribution IS 'Benjamini-Hochberg q of attribution_curvature (attribution without probes) across documents, within run, layer, energy, category and half.';
COMMENT ON COLUMN feature_statistics.cosine IS 'Cosine of m = minus the sum of a times the centred gradient with the decoder row.';
COMMENT ON COLUMN feature_statistics.t_specific IS 'Size of m along the decoder row over the root mean square of its sizes along the reference rows, each size relative to that of the gradient along the row.';
COMMENT ON COLUMN feature_statistics.p_specific IS 'Two-sided p of t_specific from Student''s t with as many degrees of freedom as there are other reference rows.';
COMMENT ON COLUMN feature_statistics.q_specific IS 'Benjamini-Hochberg q of p_specific within run, layer, energy, gradient, category and half.';
COMMENT ON COLUMN feature_statistics.p_reference IS 'The same p with one of the reference rows in place of the feature''s own: a control.';
COMMENT ON COLUMN feature_statistics.n_s_documents IS 'Documents whose sum of S_c is not 0.';
COMMENT ON COLUMN feature_statistics.sum_sd2 IS 'Sum over documents of (sum of the document''s S_c)^2.';
COMMENT ON COLUMN feature_statistics.p_documents IS 'Two-sided p of the t test on the documents'' sums of S_c; NULL below 10 documents.';
COMMENT ON COLUMN feature_statistics.q_documents IS 'Benjamini-Hochberg q of p_documents within run, layer, energy, gradient, category and half.';
