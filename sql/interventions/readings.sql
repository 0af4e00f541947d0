-- What activations and gradients of an intervention's contexts say of its features, with their documents.
SELECT r.*, c.document_id, d.half
FROM intervention_readings AS r
JOIN contexts AS c USING (run_id, context_id)
JOIN documents AS d USING (run_id, document_id)
WHERE r.run_id = $run AND r.intervention_id = $intervention
ORDER BY r.feature, r.context_id
