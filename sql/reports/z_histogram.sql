-- Histograms of z (true pairing) and of z_null (negative control) over the tested features of all layers.
WITH tested AS (
    SELECT
        energy,
        z,
        z_null,
        count(*) OVER (PARTITION BY energy) AS n_tested,
        CASE WHEN max(abs(z)) OVER (PARTITION BY energy) > 12 THEN 1.0 ELSE 0.5 END AS bin_width
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all' AND z IS NOT NULL AND z_null IS NOT NULL
),
binned AS (
    SELECT energy, n_tested, bin_width, floor(z / bin_width) AS bin, 1 AS n_true, 0 AS n_null
    FROM tested
    UNION ALL
    SELECT energy, n_tested, bin_width, floor(z_null / bin_width) AS bin, 0 AS n_true, 1 AS n_null
    FROM tested
)
SELECT
    energy,
    is_control(energy) AS is_control,
    n_tested,
    bin * bin_width AS bin_low,
    (bin + 1) * bin_width AS bin_high,
    sum(n_true)::BIGINT AS n_true_pairing,
    sum(n_null)::BIGINT AS n_negative_control
FROM binned
GROUP BY energy, n_tested, bin_width, bin
ORDER BY is_control, energy, bin
