-- Patches that were measured, with their documents.
SELECT i.*, c.document_id, d.category, d.half
FROM interventions AS i
JOIN contexts AS c USING (run_id, context_id)
JOIN documents AS d USING (run_id, document_id)
WHERE i.run_id = $run AND i.intervention_id = $intervention AND i.failure IS NULL
ORDER BY i.feature, i.direction, i.context_id
