-- Documents of an intervention's contexts, with their halves.
SELECT DISTINCT c.document_id, d.half
FROM intervention_contexts AS i
JOIN contexts AS c USING (run_id, context_id)
JOIN documents AS d USING (run_id, document_id)
WHERE i.run_id = $run AND i.intervention_id = $intervention
ORDER BY c.document_id
