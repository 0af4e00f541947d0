-- Own rows against reference rows: how many of the tested features have p below a level with their own decoder row
-- (p_specific), and how many with another feature's row in its place (p_reference). Where nothing is true the share below
-- a level is the level. Over all layers.
WITH tested AS (
    SELECT energy, p_specific, p_reference
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all' AND p_specific IS NOT NULL AND p_reference IS NOT NULL
),
levels AS (
    SELECT 10 ** (-step / 6) AS level
    FROM range(37) AS steps(step)
)
SELECT
    energy,
    is_control(energy) AS is_control,
    level,
    count(*) AS n_tested,
    count(*) FILTER (p_specific <= level) AS n_own,
    count(*) FILTER (p_reference <= level) AS n_reference
FROM tested
CROSS JOIN levels
GROUP BY energy, level
ORDER BY is_control, energy, level
