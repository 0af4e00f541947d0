-- Concept classes of features: how much each feature keeps to each class of tokens, and the same with other labels.

CREATE TABLE IF NOT EXISTS feature_classes (
    run_id         INTEGER  NOT NULL,
    layer          SMALLINT NOT NULL,
    feature        INTEGER  NOT NULL,
    class          VARCHAR  NOT NULL,
    labels         VARCHAR  NOT NULL,
    n_active       BIGINT   NOT NULL,
    n_in_class     BIGINT   NOT NULL,
    share          DOUBLE   NOT NULL,
    log_odds       DOUBLE   NOT NULL,
    n_documents    INTEGER  NOT NULL,
    z              DOUBLE,
    p_value        DOUBLE,
    q_value        DOUBLE,
    p_naive        DOUBLE,
    is_assigned    BOOLEAN  NOT NULL
);
COMMENT ON TABLE  feature_classes IS 'How much each feature keeps to each class of tokens. Filled at finish from activations, token_layers and tokens.';
COMMENT ON COLUMN feature_classes.run_id IS 'Run.';
COMMENT ON COLUMN feature_classes.layer IS 'Layer.';
COMMENT ON COLUMN feature_classes.feature IS 'Feature.';
COMMENT ON COLUMN feature_classes.class IS 'Class of tokens: regex, number, word, code, punctuation, whitespace or other.';
COMMENT ON COLUMN feature_classes.labels IS 'own: each token''s own class. mates: that of the token at the same position of the plan row''s next context, another document''s, which is the negative control.';
COMMENT ON COLUMN feature_classes.n_active IS 'Included tokens at which the feature is active and the label is known.';
COMMENT ON COLUMN feature_classes.n_in_class IS 'Those of the class.';
COMMENT ON COLUMN feature_classes.share IS 'n_in_class / n_active.';
COMMENT ON COLUMN feature_classes.log_odds IS 'Log odds ratio of being in the class, active against inactive included tokens, 1/2 added to each of the four counts.';
COMMENT ON COLUMN feature_classes.n_documents IS 'Documents with an active token of the class.';
COMMENT ON COLUMN feature_classes.z IS 'Within-context test, the class indicator in place of g and 1 for an active feature in place of a; NULL below 50 active counted tokens, 10 contexts or 5 documents.';
COMMENT ON COLUMN feature_classes.p_value IS 'Two-sided normal p of z.';
COMMENT ON COLUMN feature_classes.q_value IS 'Benjamini-Hochberg q of p over the features of the layer and class, by kind of labels.';
COMMENT ON COLUMN feature_classes.p_naive IS 'Hypergeometric p of enrichment that takes tokens as independent, for comparison: nearly every feature passes it.';
COMMENT ON COLUMN feature_classes.is_assigned IS 'The feature belongs to this class: q < 0.05, log odds of at least log 4, a share of at least 50 % (5 % for regex and number), at least 5 documents, and no other such class has larger log odds.';

COMMENT ON COLUMN tokens.class IS 'Concept class by rules on the text of its context (docs/definitions.md): regex, number, word, code, punctuation, whitespace or other; NULL in a run of before there were classes.';
