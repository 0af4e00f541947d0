-- Runs whose groups are elsewhere, too: staged, or in the files of other shards.
SELECT r.run_id, r.is_current, r.shard, count(s.group_id) AS n_staged
FROM runs AS r
LEFT JOIN staged_groups AS s USING (run_id)
GROUP BY ALL
HAVING r.shard IS NOT NULL OR n_staged > 0
ORDER BY r.run_id
