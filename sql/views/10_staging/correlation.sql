-- A correlation from a covariance and the root of two variances. Of tokens that are nearly alike rounding alone may give a
-- little more than 1, which is cut; more than that is left to be seen.
CREATE OR REPLACE MACRO correlation(covariance, scale) AS
    CASE WHEN scale > 0 AND abs(covariance) <= (1 + 1e-6) * scale THEN greatest(-1, least(1, covariance / scale))
        WHEN scale > 0 THEN covariance / scale END;
COMMENT ON MACRO correlation IS 'correlation(covariance, scale): covariance over the root of both variances; NULL where that is 0, within -1 and 1 but for sums that contradict each other.';
