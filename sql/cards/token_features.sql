-- Features that are active at a token, with the decoder gradient {gradient}; of a layer, the largest |a·g| first.
SELECT
    a.layer,
    a.feature,
    a.activation,
    a.{gradient} AS g,
    a.activation::DOUBLE * a.{gradient} AS product,
    f.class,
    f.density,
    f.top_tokens
FROM activations AS a
LEFT JOIN features AS f ON f.layer = a.layer AND f.feature = a.feature
WHERE
    a.run_id = (SELECT run_id FROM current_run) AND a.token_id = $token
    AND ($layers IS NULL OR a.layer IN (SELECT unnest($layers)))
ORDER BY a.layer, abs(product) DESC NULLS LAST, a.activation DESC, a.feature
