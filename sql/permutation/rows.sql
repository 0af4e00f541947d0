-- Rows of the committed groups, lane by lane: contexts of one row are each other's mates.
SELECT
    dense_rank() OVER (ORDER BY p.group_id, p.row) - 1 AS row_number,
    g.category,
    c.context_id,
    c.document_id,
    c.context_index
FROM plan AS p
JOIN plan_groups AS g USING (run_id, group_id)
JOIN contexts AS c USING (run_id, context_id)
WHERE p.run_id = $run AND g.committed_at IS NOT NULL AND ($category = 'all' OR g.category = $category)
ORDER BY row_number, p.lane
