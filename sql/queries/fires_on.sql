-- @fires_on: What does a feature fire on most strongly, and where does the loss pull there?
-- $layer: its layer (INTEGER)
-- $feature: its number (INTEGER)
-- $n: rows (INTEGER, default 10)
SELECT activation, before, token, after, g_nll, category, path
FROM top_examples($layer, $feature, $n)
