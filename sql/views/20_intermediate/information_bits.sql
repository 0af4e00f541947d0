-- Mutual information of a joint distribution over 5 bins of activation (outer, inactive first) and 8 of gradient, a
-- list of 40 probabilities that n tokens gave: H(a) + H(g) - H(a, g), each entropy corrected by Miller and Madow's
-- (m - 1) / 2n nats for its m non-empty bins.
CREATE OR REPLACE MACRO activation_marginal(joint) AS
    list_transform(range(0, 5), lambda a: list_sum(joint[8 * a + 1 : 8 * a + 8]));
COMMENT ON MACRO activation_marginal IS 'activation_marginal(joint): 5 probabilities of the activation''s bins from 5 x 8.';

CREATE OR REPLACE MACRO gradient_marginal(joint) AS
    list_transform(range(1, 9), lambda g: joint[g] + joint[g + 8] + joint[g + 16] + joint[g + 24] + joint[g + 32]);
COMMENT ON MACRO gradient_marginal IS 'gradient_marginal(joint): 8 probabilities of the gradient''s bins from 5 x 8.';

CREATE OR REPLACE MACRO nonempty_bins(probabilities) AS
    list_sum(list_transform(probabilities, lambda p: (p > 0)::INTEGER));
COMMENT ON MACRO nonempty_bins IS 'nonempty_bins(probabilities): how many of a list of probabilities are above 0.';

CREATE OR REPLACE MACRO information_bits(joint, activation, gradient, n) AS
    entropy_bits(activation) + entropy_bits(gradient) - entropy_bits(joint)
    + (nonempty_bins(activation) + nonempty_bins(gradient) - nonempty_bins(joint) - 1) / (2 * n * ln(2));
COMMENT ON MACRO information_bits IS 'information_bits(joint, activation, gradient, n): mutual information in bits of a joint distribution with these marginals, estimated from n tokens, with the correction of Miller and Madow.';
