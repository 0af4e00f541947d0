CREATE OR REPLACE TEMP TABLE fired_on (
    feature INTEGER, place SMALLINT, vocabulary_id INTEGER, n_active BIGINT, n_tokens BIGINT, mean_activation DOUBLE
)
