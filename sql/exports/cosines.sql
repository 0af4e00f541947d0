-- Features whose decoder rows are the most alike, the nearest first.
SELECT
    feature,
    list(neighbour ORDER BY place) AS neighbours,
    list(CAST(CAST(value AS VARCHAR) AS DOUBLE) ORDER BY place) AS cosines
FROM feature_neighbours
WHERE
    run_id = (SELECT run_id FROM current_run) AND layer = $layer AND feature IN (SELECT unnest($features))
    AND measure = 'decoder_cosine'
GROUP BY feature
