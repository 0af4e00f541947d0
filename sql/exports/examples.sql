-- Examples of features, the strongest first, then the intervals from the highest down, with their places in the text.
SELECT
    i.feature,
    i."interval",
    i.low,
    i.high,
    i.n_tokens,
    i.token_id // r.context_length AS context_id,
    (i.token_id % r.context_length)::INTEGER AS position
FROM (
    SELECT * EXCLUDE (token_ids), unnest(token_ids) AS token_id, generate_subscripts(token_ids, 1) AS place
    FROM activation_intervals
    WHERE
        run_id = (SELECT run_id FROM current_run) AND layer = $layer AND feature IN (SELECT unnest($features))
) AS i
JOIN current_run AS r USING (run_id)
ORDER BY i.feature, i."interval" = 0 DESC, i."interval" DESC, i.place
