-- Features that a reader may want to look at, and why.
-- columns as in: efas
CREATE OR REPLACE VIEW alignments AS
SELECT
    *,
    CASE
        WHEN abs(score) > 0.1 AND q_specific < 0.05 THEN '|score| > 0.1 and q_specific < 0.05'
        WHEN q_specific < 0.05 THEN 'q_specific < 0.05'
        ELSE '|score| > 0.1'
    END AS reason
FROM efas
WHERE abs(score) > 0.1 OR q_specific < 0.05;
COMMENT ON VIEW alignments IS 'Rows of efas with |score| > 0.1 or q_specific < 0.05. The first alone is what noise reaches on a few tokens; the second says that the gradient points along the feature more than along other features. q_value, which asks less, stands beside it.';
COMMENT ON COLUMN alignments.reason IS 'Which of the two conditions holds.';
