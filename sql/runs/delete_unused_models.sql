DELETE FROM models
WHERE model_sha256 NOT IN (SELECT model_sha256 FROM runs)
