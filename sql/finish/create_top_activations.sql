CREATE OR REPLACE TEMP TABLE fired (
    feature INTEGER, n_active BIGINT, mean_activation DOUBLE, max_activation FLOAT
);
CREATE OR REPLACE TEMP TABLE strongest (feature INTEGER, place INTEGER, token_id BIGINT)
