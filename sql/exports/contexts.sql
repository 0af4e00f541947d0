-- Whole contexts: texts of their tokens, and nll where a token has a next one, in a FLOAT's shortest digits.
SELECT
    p.context_id,
    any_value(p.path) AS path,
    list(p.text ORDER BY p.token_id) AS texts,
    coalesce(
        list(CAST(CAST(e.value AS VARCHAR) AS DOUBLE) ORDER BY p.token_id) FILTER (e.value IS NOT NULL), []
    ) AS losses
FROM token_places AS p
LEFT JOIN energies AS e ON e.run_id = p.run_id AND e.token_id = p.token_id AND e.energy = 'nll'
WHERE p.run_id = (SELECT run_id FROM current_run) AND p.context_id IN (SELECT unnest($contexts))
GROUP BY p.context_id
