-- How much further the loss moved along features than along each kind of control: means over features of |delta| a token.
WITH sizes AS (
    SELECT feature, control, avg(abs(delta_per_token)) AS size
    FROM intervention_effects
    WHERE intervention_id = $intervention AND category = 'all'
    GROUP BY ALL
)
SELECT c.control, avg(own.size) / avg(c.size)
FROM sizes AS c
JOIN sizes AS own USING (feature)
WHERE own.control IS NULL AND c.control IS NOT NULL
GROUP BY c.control
HAVING avg(c.size) > 0
ORDER BY c.control DESC
