-- A model that the warehouse knows keeps the name under which it came first.
INSERT INTO models BY NAME
SELECT
    $model_sha256 AS model_sha256,
    $name AS name,
    $architecture AS architecture,
    $n_layers AS n_layers,
    $d_model AS d_model,
    $vocabulary_size AS vocabulary_size,
    $n_parameters AS n_parameters
WHERE $model_sha256 NOT IN (SELECT model_sha256 FROM models)
