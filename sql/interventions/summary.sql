-- An intervention in figures: features and patches measured, and failures.
SELECT
    count(DISTINCT feature),
    count(*) FILTER (direction = 0),
    count(*) FILTER (failure IS NOT NULL)
FROM interventions
WHERE run_id = (SELECT run_id FROM current_run) AND intervention_id = $intervention
