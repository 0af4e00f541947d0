-- @top_nll: Which features' own directions go with the gradient of the loss most clearly?
-- t is t_specific, with all three tests: q_specific, is it this direction; q_value, is the gradient out of the ordinary
-- where the feature fires, in these documents; q_docs, would that hold in other documents. nats is attribution: the loss
-- that ablation is predicted, to first order, to add, and of_loss that as a share of the run's.
-- $layer: only of this layer (INTEGER, default NULL)
-- $n: rows (INTEGER, default 10)
WITH loss AS (
    SELECT t.layer, sum(e.value) AS total
    FROM energies AS e
    JOIN token_layers AS t USING (run_id, token_id)
    WHERE e.energy = 'nll' AND t.included AND e.run_id = (SELECT run_id FROM current_run)
    GROUP BY t.layer
)
SELECT
    concat(e.layer, ':', e.feature) AS feature,
    e.n_active AS active,
    round(e.score, 3) AS score,
    round(e.cosine, 2) AS cosine,
    round(e.t_specific, 1) AS t,
    printf('%.1e', e.q_specific) AS q_specific,
    round(e.q_value, 3) AS q_value,
    round(e.q_documents, 2) AS q_docs,
    round(e.attribution, 1) AS nats,
    printf('%.2f %%', 100 * e.attribution / l.total) AS of_loss,
    replace(array_to_string(list_sort(list_distinct(f.top_tokens))[:3], ' | '), chr(10), '\n')[:22] AS fires_most_on
FROM efas AS e
JOIN features AS f USING (layer, feature)
JOIN loss AS l USING (layer)
WHERE e.energy = 'nll' AND e.gradient = 'decoder' AND e.category = 'all' AND e.q_specific < 0.05
    AND ($layer IS NULL OR e.layer = $layer)
ORDER BY abs(e.t_specific) DESC
LIMIT $n
