-- Where a feature fires most, with the decoder gradient of every energy: a macro's stars are expanded when it is
-- called, so that columns of energies that came later are among them. Parameters are bound first in a SELECT without
-- FROM, because a column would shadow a parameter of the same name.
CREATE OR REPLACE MACRO top_examples(layer, feature, n) AS TABLE
WITH wanted AS (
    SELECT layer AS wanted_layer, feature AS wanted_feature, n AS wanted_n
),
strongest AS (
    SELECT a.*
    FROM activations AS a, wanted
    WHERE a.run_id = (SELECT run_id FROM current_run)
        AND a.layer = wanted_layer
        AND a.feature = wanted_feature
    QUALIFY row_number() OVER (ORDER BY a.activation DESC, a.token_id) <= wanted_n
),
around AS (
    SELECT
        s.token_id,
        string_agg(t.text, '' ORDER BY t.token_id) FILTER (t.token_id < s.token_id) AS before,
        string_agg(t.text, '' ORDER BY t.token_id) FILTER (t.token_id > s.token_id) AS after
    FROM strongest AS s
    JOIN token_places AS p USING (run_id, token_id)
    JOIN tokens AS t
        ON t.run_id = s.run_id
        AND t.token_id BETWEEN s.token_id - least(p.position, 12) AND s.token_id + 8
    JOIN token_places AS q ON q.run_id = t.run_id AND q.token_id = t.token_id AND q.context_id = p.context_id
    GROUP BY s.token_id
)
SELECT
    s.activation,
    coalesce(joined_text(around.before), '') AS before,
    p.text AS token,
    coalesce(joined_text(around.after), '') AS after,
    p.path,
    p.category,
    p.document_position,
    s.g_nll,
    s.g_logit_lens,
    s.g_tuned_lens,
    s.g_attention,
    s.g_hopfield,
    s.* EXCLUDE (
        run_id, layer, feature, token_id, activation, g_nll, g_logit_lens, g_tuned_lens, g_attention, g_hopfield
    ),
    s.token_id
FROM strongest AS s
JOIN around USING (token_id)
JOIN token_places AS p USING (run_id, token_id)
ORDER BY s.activation DESC, s.token_id;
COMMENT ON MACRO TABLE top_examples IS 'top_examples(layer, feature, n): the n strongest activations of a feature in the current run, with the text around them.';
