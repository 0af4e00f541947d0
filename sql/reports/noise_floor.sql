-- How large score_active is by the number of tokens behind it, beside what independent noise gives: the correlation of
-- n independent pairs has variance 1 / (n - 1).
WITH banded AS (
    SELECT
        energy,
        n_active,
        score_active,
        CASE WHEN n_active < 10 THEN 3 WHEN n_active < 50 THEN 10 WHEN n_active < 200 THEN 50 ELSE 200 END AS from_tokens,
        CASE WHEN n_active < 10 THEN 9 WHEN n_active < 50 THEN 49 WHEN n_active < 200 THEN 199 END AS to_tokens
    FROM efas
    WHERE gradient = 'decoder' AND category = 'all' AND score_active IS NOT NULL
)
SELECT
    energy,
    is_control(energy) AS is_control,
    from_tokens,
    to_tokens,
    count(*) AS n_features,
    sqrt(avg(score_active ** 2)) AS root_mean_square,
    sqrt(avg(1 / (n_active - 1))) AS noise_root_mean_square,
    max(abs(score_active)) AS largest
FROM banded
GROUP BY energy, from_tokens, to_tokens
ORDER BY is_control, energy, from_tokens
