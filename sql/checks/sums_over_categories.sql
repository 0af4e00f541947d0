-- Sums over the categories are those of category all.
-- Sums of nothing but active tokens, since a feature has no row where it never fires. A sum that cancels is held against
-- the size of what it sums.
WITH marked AS (
    SELECT *, category = 'all' AS is_whole
    FROM feature_statistics
    WHERE half = 'AB'
),
added AS (
    SELECT
        run_id,
        layer,
        feature,
        energy,
        gradient,
        sum(n_active) FILTER (is_whole) AS n_active,
        coalesce(sum(n_active) FILTER (NOT is_whole), 0) AS n_active_added,
        any_value(sum_a) FILTER (is_whole) AS sum_a,
        coalesce(sum(sum_a) FILTER (NOT is_whole), 0) AS sum_a_added,
        any_value(sum_a2) FILTER (is_whole) AS sum_a2,
        coalesce(sum(sum_a2) FILTER (NOT is_whole), 0) AS sum_a2_added,
        any_value(sum_ag) FILTER (is_whole) AS sum_ag,
        coalesce(sum(sum_ag) FILTER (NOT is_whole), 0) AS sum_ag_added,
        any_value(active_g) FILTER (is_whole) AS active_g,
        coalesce(sum(active_g) FILTER (NOT is_whole), 0) AS active_g_added,
        any_value(active_g2) FILTER (is_whole) AS active_g2,
        coalesce(sum(active_g2) FILTER (NOT is_whole), 0) AS active_g2_added
    FROM marked
    GROUP BY ALL
)
SELECT *
FROM added
WHERE NOT coalesce(
    n_active = n_active_added
    AND abs(sum_a - sum_a_added) <= 1e-9 * sum_a
    AND abs(sum_a2 - sum_a2_added) <= 1e-9 * sum_a2
    AND abs(sum_ag - sum_ag_added) <= 1e-9 * sqrt(sum_a2 * active_g2)
    AND abs(active_g - active_g_added) <= 1e-9 * sqrt(n_active * active_g2)
    AND abs(active_g2 - active_g2_added) <= 1e-9 * active_g2,
    false
)
