-- An intervention in four figures: features and patches measured, failures, and its size beside random directions.
WITH sizes AS (
    SELECT direction > 0 AS is_random, avg(abs(delta_per_token)) AS size
    FROM intervention_effects
    WHERE intervention_id = $intervention AND category = 'all'
    GROUP BY ALL
)
SELECT
    count(DISTINCT feature),
    count(*) FILTER (direction = 0),
    count(*) FILTER (failure IS NOT NULL),
    (SELECT max(size) FILTER (NOT is_random) / nullif(max(size) FILTER (is_random), 0) FROM sizes)
FROM interventions
WHERE run_id = (SELECT run_id FROM current_run) AND intervention_id = $intervention
