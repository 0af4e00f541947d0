-- Readings of an intervention are of its own features at measured contexts, and count the tokens that they say.
SELECT r.run_id, r.intervention_id, r.feature, r.context_id, r.n_tokens, r.n_active
FROM intervention_readings AS r
LEFT JOIN intervention_contexts AS c
    ON c.run_id = r.run_id AND c.intervention_id = r.intervention_id AND c.context_id = r.context_id
LEFT JOIN intervention_features AS f
    ON f.run_id = r.run_id AND f.intervention_id = r.intervention_id AND f.feature = r.feature
WHERE c.measured_at IS NULL
    OR f.feature IS NULL
    OR r.n_active NOT BETWEEN 0 AND r.n_tokens
    OR list_sum(r.cells) <> r.n_tokens
    OR list_sum(r.cells[9:]) <> r.n_active
