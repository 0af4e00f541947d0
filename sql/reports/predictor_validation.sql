-- Rank correlation of each predictor with the measured effects: of sums, per edited token, and given the number of
-- edited tokens and the size of the edits; on the same tokens, and from one half of the documents to the other, there
-- also disattenuated: over the root of the measurement's reliability. For the intervention of each layer and kind with
-- the most features.
WITH chosen AS (
    SELECT layer, kind, max_by(intervention_id, {'n': n_features, 'id': intervention_id}) AS intervention_id
    FROM predictor_validation
    GROUP BY ALL
)
SELECT
    p.intervention_id,
    p.layer,
    p.kind,
    p.predictor,
    any_value(p.backward_passes) AS backward_passes,
    max(p.n_features) FILTER (p.validation = 'same') AS n_features,
    any_value(p.spearman) FILTER (p.validation = 'same' AND p.target = 'sum') AS spearman,
    any_value(p.spearman_low) FILTER (p.validation = 'same' AND p.target = 'sum') AS spearman_low,
    any_value(p.spearman_high) FILTER (p.validation = 'same' AND p.target = 'sum') AS spearman_high,
    any_value(p.pearson) FILTER (p.validation = 'same' AND p.target = 'sum') AS pearson,
    any_value(p.spearman) FILTER (p.validation = 'same' AND p.target = 'per_token') AS per_token,
    any_value(p.spearman) FILTER (p.validation = 'same' AND p.target = 'partial') AS partial,
    any_value(p.spearman) FILTER (p.validation = 'transfer' AND p.target = 'sum') AS transfer,
    any_value(p.spearman_low) FILTER (p.validation = 'transfer' AND p.target = 'sum') AS transfer_low,
    any_value(p.spearman_high) FILTER (p.validation = 'transfer' AND p.target = 'sum') AS transfer_high,
    any_value(p.spearman_disattenuated) FILTER (p.validation = 'transfer' AND p.target = 'sum') AS disattenuated,
    any_value(p.spearman_disattenuated_low) FILTER (p.validation = 'transfer' AND p.target = 'sum')
        AS disattenuated_low,
    any_value(p.spearman_disattenuated_high) FILTER (p.validation = 'transfer' AND p.target = 'sum')
        AS disattenuated_high
FROM predictor_validation AS p
JOIN chosen AS c ON c.intervention_id = p.intervention_id
GROUP BY ALL
ORDER BY p.intervention_id, spearman DESC NULLS LAST, p.predictor
