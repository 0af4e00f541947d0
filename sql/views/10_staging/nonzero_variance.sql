-- A population variance from a mean square and a mean; 0 where what is left is rounding of equal values. Stored
-- values are float32, so a spread below a millionth of their size cannot be told from none.
CREATE OR REPLACE MACRO nonzero_variance(mean_square, mean) AS
    CASE WHEN mean_square - mean * mean > 1e-12 * mean_square THEN mean_square - mean * mean
        WHEN mean_square IS NOT NULL THEN 0.0 END;
COMMENT ON MACRO nonzero_variance IS 'nonzero_variance(mean_square, mean): population variance; 0 where the difference is only rounding.';
