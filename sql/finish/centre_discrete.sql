-- The discrete gradient of one layer and energy as the within-context test wants it: g minus its mean over the context's
-- tokens, minus the mean of its mates' at the same position, where at least 3 mates have one, minus the mean of what is
-- left over these tokens (`tested`); and the same of the row's next context without the mates' that the control may not
-- see (`control`), as in the stream of the decoder gradient. A temporary table, since two queries read it.
CREATE OR REPLACE TEMP TABLE centred_discrete AS
WITH centred AS (
    SELECT
        g.token_id,
        p.context_id,
        p.group_id,
        p.row,
        p.lane,
        g.token_id % $context_length AS position,
        g.discrete,
        g.discrete - avg(g.discrete) OVER (PARTITION BY p.context_id) AS g
    FROM gradients AS g
    JOIN plan AS p ON p.run_id = $run AND p.context_id = g.token_id // $context_length
    WHERE g.run_id = $run AND g.layer = $layer AND g.energy = $energy AND g.discrete IS NOT NULL
),
lanes AS (
    SELECT group_id, row, count(*) AS n_lanes
    FROM plan
    WHERE run_id = $run
    GROUP BY ALL
),
paired AS (
    SELECT
        own.token_id,
        own.context_id,
        own.discrete,
        own.g,
        following.g AS next_g,
        sum(own.g) OVER beside AS total,
        count(*) OVER beside AS n_beside
    FROM centred AS own
    JOIN lanes AS l USING (group_id, row)
    LEFT JOIN centred AS following
        ON following.group_id = own.group_id
        AND following.row = own.row
        AND following.position = own.position
        AND following.lane = (own.lane + 1) % l.n_lanes
        AND l.n_lanes > 1
    WINDOW beside AS (PARTITION BY own.group_id, own.row, own.position)
),
less_mates AS (
    SELECT
        token_id,
        context_id,
        discrete,
        CASE WHEN n_beside > 3 THEN g - (total - g) / (n_beside - 1) END AS tested,
        CASE WHEN n_beside > 3 THEN next_g - (total - g - next_g) / (n_beside - 2) END AS control
    FROM paired
)
SELECT
    token_id,
    context_id,
    discrete,
    tested - avg(tested) OVER (PARTITION BY context_id) AS tested,
    control - avg(control) OVER (PARTITION BY context_id) AS control
FROM less_mates
