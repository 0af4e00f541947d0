-- Every context has its document, every token its context, and every reading its token.
WITH orphans AS (
    SELECT 'contexts' AS "table", 'documents' AS lacks, c.run_id, c.context_id::BIGINT AS id
    FROM contexts AS c
    ANTI JOIN documents AS d ON d.run_id = c.run_id AND d.document_id = c.document_id
    UNION ALL
    SELECT 'document_aliases', 'documents', a.run_id, a.document_id
    FROM document_aliases AS a
    ANTI JOIN documents AS d ON d.run_id = a.run_id AND d.document_id = a.document_id
    UNION ALL
    SELECT 'plan', 'contexts', p.run_id, p.context_id
    FROM plan AS p
    ANTI JOIN contexts AS c ON c.run_id = p.run_id AND c.context_id = p.context_id
    UNION ALL
    SELECT 'plan', 'plan_groups', p.run_id, p.context_id
    FROM plan AS p
    ANTI JOIN plan_groups AS g ON g.run_id = p.run_id AND g.group_id = p.group_id
    UNION ALL
    SELECT 'tokens', 'contexts', t.run_id, t.token_id
    FROM tokens AS t
    JOIN runs AS r ON r.run_id = t.run_id
    ANTI JOIN contexts AS c ON c.run_id = t.run_id AND c.context_id = t.token_id // r.context_length
    UNION ALL
    SELECT 'token_layers', 'tokens', l.run_id, l.token_id
    FROM token_layers AS l
    ANTI JOIN tokens AS t ON t.run_id = l.run_id AND t.token_id = l.token_id
    UNION ALL
    SELECT 'energies', 'tokens', e.run_id, e.token_id
    FROM energies AS e
    ANTI JOIN tokens AS t ON t.run_id = e.run_id AND t.token_id = e.token_id
    UNION ALL
    SELECT 'gradients', 'token_layers', g.run_id, g.token_id
    FROM gradients AS g
    ANTI JOIN token_layers AS l ON l.run_id = g.run_id AND l.token_id = g.token_id AND l.layer = g.layer
)
SELECT *
FROM orphans
