-- Entropy of a list of probabilities. The guard is needed: the logarithm of 0 is an error or minus infinity.
CREATE OR REPLACE MACRO entropy_bits(probabilities) AS
    list_sum(list_transform(probabilities, lambda p: CASE WHEN p > 0 THEN -p * log2(p) ELSE 0.0 END));
COMMENT ON MACRO entropy_bits IS 'entropy_bits(probabilities): entropy of a list of probabilities in bits; zeros add nothing.';
