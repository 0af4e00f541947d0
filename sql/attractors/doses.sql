-- Critical doses of a feature of the current run, with the tokens and the attractors' names.
SELECT
    d.later_layer,
    d.token_id,
    t.text AS token,
    round(d.activation, 2) AS activation,
    d.attractor,
    b.label,
    round(d.scale_down, 3) AS scale_down,
    d.attractor_down,
    round(d.scale_up, 3) AS scale_up,
    d.attractor_up,
    u.label AS label_up
FROM critical_doses AS d
JOIN tokens AS t USING (run_id, token_id)
LEFT JOIN attractors AS b ON b.run_id = d.run_id AND b.layer = d.later_layer AND b.attractor = d.attractor
LEFT JOIN attractors AS u ON u.run_id = d.run_id AND u.layer = d.later_layer AND u.attractor = d.attractor_up
WHERE d.run_id = (SELECT run_id FROM current_run) AND d.layer = $layer AND d.feature = $feature
ORDER BY d.token_id
