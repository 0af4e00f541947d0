-- The token of every activation is included at that layer.
SELECT a.run_id, a.layer, a.feature, a.token_id
FROM activations AS a
ANTI JOIN token_layers AS l ON l.run_id = a.run_id AND l.layer = a.layer AND l.token_id = a.token_id AND l.included
