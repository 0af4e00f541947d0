-- The run's own negative control: how often the test finds something where nothing is true.
-- columns as in: efas
CREATE OR REPLACE VIEW null_control AS
SELECT
    energy,
    gradient,
    layer,
    category,
    count(z_null) AS n_tested,
    avg((abs(z_null) > 1.96)::INTEGER) AS share_rejected,
    avg((abs(z) > 1.96)::INTEGER) AS share_rejected_true_pairing,
    avg((p_reference < 0.05)::INTEGER) AS share_reference_rejected,
    avg((p_specific < 0.05)::INTEGER) AS share_specific
FROM efas
WHERE z_null IS NOT NULL
GROUP BY energy, gradient, layer, category;
COMMENT ON VIEW null_control IS 'False-positive shares, measured on the run itself: of the within-context test, by pairing activations with another context''s gradient, and of the test of the direction, by other features'' rows. About 5 % is right.';
COMMENT ON COLUMN null_control.n_tested IS 'Features that are tested.';
COMMENT ON COLUMN null_control.share_rejected IS 'Share of them with |z_null| > 1.96.';
COMMENT ON COLUMN null_control.share_rejected_true_pairing IS 'Share of them with |z| > 1.96: the true pairing beside it.';
COMMENT ON COLUMN null_control.share_reference_rejected IS 'Share whose p of the direction is below 0.05 with another feature''s row in place of their own: the control of t_specific, about 5 % is right.';
COMMENT ON COLUMN null_control.share_specific IS 'Share whose p_specific is below 0.05.';
