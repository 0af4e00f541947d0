SELECT plan.group_id, plan.row, contexts.context_id, contexts.document_id, contexts.context_index,
    contexts.first_token, contexts.n_tokens
FROM plan
JOIN contexts USING (run_id, context_id)
WHERE plan.run_id = $run
ORDER BY plan.group_id, plan.row, plan.lane
