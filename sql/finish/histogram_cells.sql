-- Joint histograms of one layer and energy, by category and for all together. {gradient} is the quoted column of the
-- energy, e.g. "g_nll". Cells of active tokens are numbered 1 to 32: the bin of a outer, that of g inner.
INSERT INTO histogram_cells BY NAME
WITH bins AS MATERIALIZED (
    SELECT feature, q25, q50, q75, g1, g2, g3, g4, g5, g6, g7
    FROM histogram_bins
    WHERE run_id = $run AND layer = $layer AND energy = $energy
),
-- The place of every committed context: its category, and the next context of its row, the last one's being the first.
places AS MATERIALIZED (
    SELECT
        p.context_id,
        g.category,
        coalesce(lead(p.context_id) OVER in_row, first_value(p.context_id) OVER in_row) AS following
    FROM plan AS p
    JOIN plan_groups AS g USING (run_id, group_id)
    WHERE run_id = $run AND g.committed_at IS NOT NULL
    WINDOW in_row AS (PARTITION BY group_id, p.row ORDER BY p.lane)
),
binned AS (
    SELECT
        a.feature,
        a.token_id // $context_length AS context_id,
        8 * ((a.activation > q25)::INTEGER + (a.activation > q50)::INTEGER + (a.activation > q75)::INTEGER)
        + 1 + (a.{gradient} > g1)::INTEGER + (a.{gradient} > g2)::INTEGER + (a.{gradient} > g3)::INTEGER
        + (a.{gradient} > g4)::INTEGER + (a.{gradient} > g5)::INTEGER + (a.{gradient} > g6)::INTEGER
        + (a.{gradient} > g7)::INTEGER AS cell
    FROM activations AS a
    JOIN bins USING (feature)
    WHERE a.run_id = $run AND a.layer = $layer
),
own AS (
    SELECT b.feature, p.category, b.cell, count(*) AS n
    FROM binned AS b
    JOIN places AS p USING (context_id)
    GROUP BY ALL
),
-- Lists are written out, since unnesting and gathering them takes several times as long (measured).
own_cells AS (
    SELECT
        feature,
        coalesce(category, 'all') AS category,
        [
            sum(n) FILTER (cell = 1), sum(n) FILTER (cell = 2), sum(n) FILTER (cell = 3), sum(n) FILTER (cell = 4),
            sum(n) FILTER (cell = 5), sum(n) FILTER (cell = 6), sum(n) FILTER (cell = 7), sum(n) FILTER (cell = 8),
            sum(n) FILTER (cell = 9), sum(n) FILTER (cell = 10), sum(n) FILTER (cell = 11), sum(n) FILTER (cell = 12),
            sum(n) FILTER (cell = 13), sum(n) FILTER (cell = 14), sum(n) FILTER (cell = 15), sum(n) FILTER (cell = 16),
            sum(n) FILTER (cell = 17), sum(n) FILTER (cell = 18), sum(n) FILTER (cell = 19), sum(n) FILTER (cell = 20),
            sum(n) FILTER (cell = 21), sum(n) FILTER (cell = 22), sum(n) FILTER (cell = 23), sum(n) FILTER (cell = 24),
            sum(n) FILTER (cell = 25), sum(n) FILTER (cell = 26), sum(n) FILTER (cell = 27), sum(n) FILTER (cell = 28),
            sum(n) FILTER (cell = 29), sum(n) FILTER (cell = 30), sum(n) FILTER (cell = 31), sum(n) FILTER (cell = 32)
        ]::BIGINT[] AS counts
    FROM own
    GROUP BY GROUPING SETS ((feature, category), (feature))
),
streamed AS (
    SELECT
        h.feature,
        coalesce(g.category, 'all') AS category,
        [
            sum(h.inactive[1]), sum(h.inactive[2]), sum(h.inactive[3]), sum(h.inactive[4]),
            sum(h.inactive[5]), sum(h.inactive[6]), sum(h.inactive[7]), sum(h.inactive[8])
        ]::BIGINT[] AS inactive,
        [
            sum(h.mates_active[1]), sum(h.mates_active[2]), sum(h.mates_active[3]), sum(h.mates_active[4]),
            sum(h.mates_active[5]), sum(h.mates_active[6]), sum(h.mates_active[7]), sum(h.mates_active[8]),
            sum(h.mates_active[9]), sum(h.mates_active[10]), sum(h.mates_active[11]), sum(h.mates_active[12]),
            sum(h.mates_active[13]), sum(h.mates_active[14]), sum(h.mates_active[15]), sum(h.mates_active[16]),
            sum(h.mates_active[17]), sum(h.mates_active[18]), sum(h.mates_active[19]), sum(h.mates_active[20]),
            sum(h.mates_active[21]), sum(h.mates_active[22]), sum(h.mates_active[23]), sum(h.mates_active[24]),
            sum(h.mates_active[25]), sum(h.mates_active[26]), sum(h.mates_active[27]), sum(h.mates_active[28]),
            sum(h.mates_active[29]), sum(h.mates_active[30]), sum(h.mates_active[31]), sum(h.mates_active[32])
        ]::BIGINT[] AS mates_active,
        [
            sum(h.mates_inactive[1]), sum(h.mates_inactive[2]), sum(h.mates_inactive[3]), sum(h.mates_inactive[4]),
            sum(h.mates_inactive[5]), sum(h.mates_inactive[6]), sum(h.mates_inactive[7]), sum(h.mates_inactive[8])
        ]::BIGINT[] AS mates_inactive
    FROM feature_histograms AS h
    JOIN plan_groups AS g USING (run_id, group_id)
    WHERE h.run_id = $run AND h.layer = $layer AND h.energy = $energy
    GROUP BY GROUPING SETS ((h.feature, g.category), (h.feature))
),
included AS MATERIALIZED (
    SELECT
        token_id // $context_length AS context_id,
        token_id % $context_length AS position
    FROM token_layers
    WHERE run_id = $run AND layer = $layer AND included
),
sizes AS (
    SELECT
        coalesce(p.category, 'all') AS category,
        count(*) AS n_tokens,
        count(mate.position) AS mates_tokens
    FROM places AS p
    JOIN included AS own ON own.context_id = p.context_id
    LEFT JOIN included AS mate
        ON mate.context_id = p.following AND p.following <> p.context_id AND mate.position = own.position
    GROUP BY GROUPING SETS ((p.category), ())
)
SELECT
    $run AS run_id,
    $layer AS layer,
    h.feature,
    $energy AS energy,
    h.category,
    s.n_tokens,
    list_transform(coalesce(o.counts, list_resize([]::BIGINT[], 32)), lambda n: coalesce(n, 0)) AS active,
    h.inactive,
    s.mates_tokens,
    h.mates_active,
    h.mates_inactive
FROM streamed AS h
JOIN sizes AS s USING (category)
LEFT JOIN own_cells AS o USING (feature, category)
WHERE h.category = 'all' OR o.counts IS NOT NULL
ORDER BY h.category, h.feature
