-- Figures of `elw sae evaluate`: the pooled ones beside each SAE, and all of them by category.

ALTER TABLE saes ADD COLUMN IF NOT EXISTS fvu_macro         DOUBLE;
ALTER TABLE saes ADD COLUMN IF NOT EXISTS dense_share       DOUBLE;
ALTER TABLE saes ADD COLUMN IF NOT EXISTS ce_clean          DOUBLE;
ALTER TABLE saes ADD COLUMN IF NOT EXISTS delta_ce          DOUBLE;
ALTER TABLE saes ADD COLUMN IF NOT EXISTS ce_recovered_zero DOUBLE;
ALTER TABLE saes ADD COLUMN IF NOT EXISTS ce_recovered_mean DOUBLE;
ALTER TABLE saes ADD COLUMN IF NOT EXISTS evaluated_tokens  BIGINT;
ALTER TABLE saes ADD COLUMN IF NOT EXISTS evaluated_on      VARCHAR;
COMMENT ON COLUMN saes.fvu_macro IS 'Mean over categories of fvu; NULL, as all that follows, while the SAE has no evaluation (elw sae evaluate).';
COMMENT ON COLUMN saes.dense_share IS 'Share of features that fire on more than 10 % of included tokens.';
COMMENT ON COLUMN saes.ce_clean IS 'Mean loss of the model as it is, in nats a token, over tokens at and after a replaced one of their context.';
COMMENT ON COLUMN saes.delta_ce IS 'How much that loss rises, in nats a token, when included residuals are replaced by their reconstruction.';
COMMENT ON COLUMN saes.ce_recovered_zero IS '(CE_zero - CE_sae) / (CE_zero - CE_clean): the share of zero ablation''s damage that the SAE avoids.';
COMMENT ON COLUMN saes.ce_recovered_mean IS '(CE_mean - CE_sae) / (CE_mean - CE_clean): the same for ablation to the mean, mostly the stricter measure.';
COMMENT ON COLUMN saes.evaluated_tokens IS 'Included tokens of the evaluation; dead_share depends on how many they are.';
COMMENT ON COLUMN saes.evaluated_on IS 'JSON of what the figures were measured on: documents, context length, precision, norm median and mean.';

CREATE TABLE IF NOT EXISTS sae_quality (
    run_id            INTEGER NOT NULL,
    layer             INTEGER NOT NULL,
    category          VARCHAR NOT NULL,
    n_documents       BIGINT,
    n_tokens          BIGINT,
    n_excluded        BIGINT,
    n_massive         BIGINT,
    l0                DOUBLE,
    fvu               DOUBLE,
    cosine            DOUBLE,
    dead_share        DOUBLE,
    dense_share       DOUBLE,
    n_loss_tokens     BIGINT,
    ce_clean          DOUBLE,
    ce_sae            DOUBLE,
    ce_zero           DOUBLE,
    ce_mean           DOUBLE,
    delta_ce          DOUBLE,
    ce_recovered_zero DOUBLE,
    ce_recovered_mean DOUBLE
);
COMMENT ON TABLE  sae_quality IS 'What the SAE of each hooked layer leaves out and what that costs the model, by category, on documents it never saw; from elw sae evaluate.';
COMMENT ON COLUMN sae_quality.run_id IS 'Run.';
COMMENT ON COLUMN sae_quality.layer IS 'Layer of the SAE.';
COMMENT ON COLUMN sae_quality.category IS 'A category of the evaluated documents, all (every token together), or macro (the mean over categories; its counts are those of all). A category of one of these names has a slash behind it.';
COMMENT ON COLUMN sae_quality.n_documents IS 'Evaluated documents with an included token.';
COMMENT ON COLUMN sae_quality.n_tokens IS 'Included tokens.';
COMMENT ON COLUMN sae_quality.n_excluded IS 'Tokens that are not included.';
COMMENT ON COLUMN sae_quality.n_massive IS 'Of these, tokens that are excluded for their norm.';
COMMENT ON COLUMN sae_quality.l0 IS 'Mean number of active features per included token.';
COMMENT ON COLUMN sae_quality.fvu IS 'Fraction of variance unexplained: sum |x - x̂|^2 / sum |x - mean x|^2, the mean over the same tokens.';
COMMENT ON COLUMN sae_quality.cosine IS 'Mean cosine of x and its reconstruction.';
COMMENT ON COLUMN sae_quality.dead_share IS 'Share of features that never fire on these n_tokens; the fewer tokens, the more features.';
COMMENT ON COLUMN sae_quality.dense_share IS 'Share of features that fire on more than 10 % of these tokens.';
COMMENT ON COLUMN sae_quality.n_loss_tokens IS 'Tokens whose loss counts: those at and after a replaced one of their context that have a next token.';
COMMENT ON COLUMN sae_quality.ce_clean IS 'Mean loss of the model as it is, in nats a token.';
COMMENT ON COLUMN sae_quality.ce_sae IS 'The same with included residuals replaced by their reconstruction.';
COMMENT ON COLUMN sae_quality.ce_zero IS 'The same with included residuals replaced by zero.';
COMMENT ON COLUMN sae_quality.ce_mean IS 'The same with included residuals replaced by their mean.';
COMMENT ON COLUMN sae_quality.delta_ce IS 'ce_sae - ce_clean.';
COMMENT ON COLUMN sae_quality.ce_recovered_zero IS '(ce_zero - ce_sae) / (ce_zero - ce_clean); for macro the mean of this over categories.';
COMMENT ON COLUMN sae_quality.ce_recovered_mean IS '(ce_mean - ce_sae) / (ce_mean - ce_clean); for macro the mean of this over categories.';

-- SAEs that normalise each token: one unit of feature j adds s_t times its decoder row, s_t being 1 for the others.
COMMENT ON COLUMN saes.architecture IS 'Activation rule: standard, topk, jumprelu or gated.';
COMMENT ON TABLE  document_gradients IS 'Sum of s_t dE/dx over a document''s included tokens of a group; minus its product with a decoder row is the document''s sum of decoder gradients. s_t is 1 unless the SAE normalises each token.';
COMMENT ON COLUMN document_gradients.gradient_sum IS 'Sum of s_t dE/dx, d_model numbers.';
