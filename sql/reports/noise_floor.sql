-- How large correlations are by the number of tokens behind them, beside what independent normal noise on the same numbers
-- of tokens gives: over active tokens (score_active) by bands of their number and in all, and over all included tokens
-- (score). Above counts |r| > 0.7, the headline of the draft that this project began from; largest stands beside the
-- median of the largest |r| that as many draws of noise reach.
WITH correlated AS (
    SELECT energy, 'active' AS counted, n_active AS n, score_active AS r, coalesce(q_specific < 0.05, false) AS is_specific
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all' AND score_active IS NOT NULL AND n_active >= 3
    UNION ALL
    SELECT energy, 'all', n_tokens, score, coalesce(q_specific < 0.05, false)
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all' AND score IS NOT NULL AND n_active > 0 AND n_tokens >= 3
),
banded AS (
    SELECT
        *,
        CASE
            WHEN counted = 'all' THEN NULL
            WHEN n < 10 THEN 3
            WHEN n < 50 THEN 10
            WHEN n < 200 THEN 50
            ELSE 200
        END AS from_tokens,
        -- Noise is integrated once for each number of tokens: of many, three digits will do.
        CASE WHEN n < 1000 THEN n ELSE (n // 10 ** (floor(log10(n)) - 2) * 10 ** (floor(log10(n)) - 2))::BIGINT END AS like_n
    FROM correlated
),
-- Over n independent pairs, r = sin(angle) has a density proportional to cos(angle)^(n - 3). Steps are fine near 0, where
-- that of many tokens lies.
steps AS (
    SELECT (pi() / 2) * (step / 500) ** 2 AS low, (pi() / 2) * ((step + 1) / 500) ** 2 AS high
    FROM range(500) AS steps(step)
),
weighted AS (
    SELECT s.like_n, low, high, (high - low) * cos((low + high) / 2) ** (s.like_n - 3) AS weight
    FROM (SELECT DISTINCT like_n FROM banded) AS s
    CROSS JOIN steps
),
tails AS (
    SELECT
        like_n,
        high,
        -- Of |r| above sin(high).
        greatest(1 - sum(weight) OVER from_zero / sum(weight) OVER (PARTITION BY like_n), 0) AS share_beyond
    FROM weighted
    WINDOW from_zero AS (PARTITION BY like_n ORDER BY high ROWS UNBOUNDED PRECEDING)
),
beyond AS (
    SELECT
        like_n,
        sum(weight * greatest(high - greatest(low, asin(0.7)), 0) / (high - low)) / sum(weight) AS share_above
    FROM weighted
    GROUP BY like_n
),
cells AS (
    SELECT energy, counted, from_tokens, like_n, count(*) AS n_draws
    FROM banded
    GROUP BY GROUPING SETS ((energy, counted, from_tokens, like_n))
    UNION ALL
    SELECT energy, counted, NULL, like_n, count(*)
    FROM banded
    WHERE from_tokens IS NOT NULL
    GROUP BY energy, counted, like_n
),
-- The chance that all draws stay below: the largest of them has its median where that is a half.
reached AS (
    SELECT energy, counted, from_tokens, min(sin(high)) FILTER (log_share_below >= ln(0.5)) AS noise_largest
    FROM (
        SELECT energy, counted, from_tokens, high, sum(n_draws * ln(1 - least(share_beyond, 1 - 1e-15))) AS log_share_below
        FROM cells
        JOIN tails USING (like_n)
        GROUP BY energy, counted, from_tokens, high
    )
    GROUP BY energy, counted, from_tokens
),
found AS (
    SELECT
        energy,
        counted,
        CASE WHEN grouping(from_tokens) = 0 THEN from_tokens END AS from_tokens,
        count(*) AS n_features,
        sqrt(avg(r ** 2)) AS root_mean_square,
        sqrt(avg(1 / (n - 1))) AS noise_root_mean_square,
        max(abs(r)) AS largest,
        count(*) FILTER (abs(r) > 0.7) AS n_above,
        count(*) FILTER (abs(r) > 0.7 AND is_specific) AS n_above_specific,
        sum(share_above) AS noise_above
    FROM banded
    JOIN beyond USING (like_n)
    GROUP BY GROUPING SETS ((energy, counted, from_tokens), (energy, counted))
    HAVING counted = 'active' OR grouping(from_tokens) = 1
)
SELECT
    f.energy,
    is_control(f.energy) AS is_control,
    f.counted,
    f.from_tokens,
    CASE f.from_tokens WHEN 3 THEN 9 WHEN 10 THEN 49 WHEN 50 THEN 199 END AS to_tokens,
    f.n_features,
    f.root_mean_square,
    f.noise_root_mean_square,
    f.largest,
    r.noise_largest,
    f.n_above,
    f.noise_above,
    -- More than two standard deviations of a count above what noise gives.
    f.n_above > f.noise_above + 2 * sqrt(f.noise_above) AS is_above_noise,
    f.n_above_specific
FROM found AS f
JOIN reached AS r
    ON r.energy = f.energy AND r.counted = f.counted AND r.from_tokens IS NOT DISTINCT FROM f.from_tokens
ORDER BY is_control, f.energy, f.counted, f.from_tokens NULLS LAST
