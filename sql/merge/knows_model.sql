SELECT count(*) > 0
FROM models
WHERE model_sha256 = $model_sha256
