-- Joint histograms of one layer and energy, by category and for all together. {gradient} is the quoted column of the
-- energy, e.g. "g_nll". Counts of all kinds go through one long form, (feature, category, place, n), in which a place
-- is 1 to 32 for own active cells, then as they stand in `stream`: 33 to 64 for the mates' active cells, 65 to 72 for
-- inactive tokens, 73 to 80 for the mates' inactive ones.
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
        + (a.{gradient} > g7)::INTEGER AS place
    FROM activations AS a
    JOIN bins USING (feature)
    WHERE a.run_id = $run AND a.layer = $layer
),
own AS (
    SELECT b.feature, p.category, b.place, count(*) AS n
    FROM binned AS b
    JOIN places AS p USING (context_id)
    GROUP BY ALL
),
stream AS (
    SELECT
        h.feature,
        g.category,
        list_concat(list_resize([]::INTEGER[], 32, 0), h.mates_active, h.inactive, h.mates_inactive) AS counts
    FROM feature_histograms AS h
    JOIN plan_groups AS g USING (run_id, group_id)
    WHERE h.run_id = $run AND h.layer = $layer AND h.energy = $energy
),
streamed AS (
    SELECT feature, category, place, sum(n)::BIGINT AS n
    FROM (SELECT feature, category, unnest(counts) AS n, generate_subscripts(counts, 1) AS place FROM stream)
    GROUP BY ALL
),
summed AS (
    SELECT feature, coalesce(category, 'all') AS category, place, sum(n)::BIGINT AS n
    FROM (FROM own UNION ALL FROM streamed)
    GROUP BY GROUPING SETS ((feature, category, place), (feature, place))
),
laid_out AS (
    SELECT feature, category, list(n ORDER BY place) AS counts
    FROM summed
    GROUP BY feature, category
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
    l.feature,
    $energy AS energy,
    l.category,
    s.n_tokens,
    l.counts[1:32] AS active,
    l.counts[65:72] AS inactive,
    s.mates_tokens,
    l.counts[33:64] AS mates_active,
    l.counts[73:80] AS mates_inactive
FROM laid_out AS l
JOIN sizes AS s USING (category)
WHERE l.category = 'all' OR list_sum(l.counts[1:32]) > 0
ORDER BY l.category, l.feature
