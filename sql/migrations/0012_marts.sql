-- What views of layers, features and categories would have to scan tokens or activations for: filled at finish, and here
-- for the runs that are there.

CREATE TABLE IF NOT EXISTS layer_tokens (
    run_id    INTEGER  NOT NULL,
    layer     SMALLINT NOT NULL,
    reason    VARCHAR,
    n_tokens  BIGINT   NOT NULL,
    n_counted BIGINT   NOT NULL
);
COMMENT ON TABLE  layer_tokens IS 'Tokens of each layer by whether the statistics include them; filled at finish.';
COMMENT ON COLUMN layer_tokens.run_id IS 'Run.';
COMMENT ON COLUMN layer_tokens.layer IS 'Layer.';
COMMENT ON COLUMN layer_tokens.reason IS 'Why they are excluded: first token, massive norm, special token or no next token; NULL for the included ones.';
COMMENT ON COLUMN layer_tokens.n_tokens IS 'Tokens.';
COMMENT ON COLUMN layer_tokens.n_counted IS 'Those that the within-context test counts.';

CREATE TABLE IF NOT EXISTS layer_energies (
    run_id       INTEGER NOT NULL,
    energy       VARCHAR NOT NULL,
    layer        SMALLINT,
    category     VARCHAR,
    n_tokens     BIGINT  NOT NULL,
    mean         DOUBLE  NOT NULL,
    sd           DOUBLE  NOT NULL,
    q05          DOUBLE  NOT NULL,
    q25          DOUBLE  NOT NULL,
    median       DOUBLE  NOT NULL,
    q75          DOUBLE  NOT NULL,
    q95          DOUBLE  NOT NULL,
    kl_to_output DOUBLE
);
COMMENT ON TABLE  layer_energies IS 'How each energy is distributed over tokens, by layer and category; filled at finish. The view layer_energy shows it.';
COMMENT ON COLUMN layer_energies.run_id IS 'Run.';
COMMENT ON COLUMN layer_energies.energy IS 'Energy.';
COMMENT ON COLUMN layer_energies.layer IS 'Layer at which it is read; NULL for nll, the model''s own output.';
COMMENT ON COLUMN layer_energies.category IS 'A category of documents; NULL for all of them.';
COMMENT ON COLUMN layer_energies.n_tokens IS 'Tokens with this energy.';
COMMENT ON COLUMN layer_energies.mean IS 'Mean.';
COMMENT ON COLUMN layer_energies.sd IS 'Standard deviation.';
COMMENT ON COLUMN layer_energies.q05 IS '5 % quantile.';
COMMENT ON COLUMN layer_energies.q25 IS '25 % quantile.';
COMMENT ON COLUMN layer_energies.median IS 'Median.';
COMMENT ON COLUMN layer_energies.q75 IS '75 % quantile.';
COMMENT ON COLUMN layer_energies.q95 IS '95 % quantile.';
COMMENT ON COLUMN layer_energies.kl_to_output IS 'Mean KL(p||q) in nats of the model''s own next-token distribution p and the q that a lens reads; NULL for other energies.';

CREATE TABLE IF NOT EXISTS layer_losses (
    run_id INTEGER  NOT NULL,
    energy VARCHAR  NOT NULL,
    layer  SMALLINT NOT NULL,
    total  DOUBLE   NOT NULL
);
COMMENT ON TABLE  layer_losses IS 'Energies that are losses, summed over the included tokens of each layer; filled at finish. An attribution is a share of it.';
COMMENT ON COLUMN layer_losses.run_id IS 'Run.';
COMMENT ON COLUMN layer_losses.energy IS 'Energy.';
COMMENT ON COLUMN layer_losses.layer IS 'Layer whose included tokens are summed over.';
COMMENT ON COLUMN layer_losses.total IS 'Sum, in the energy''s units.';

CREATE TABLE IF NOT EXISTS feature_activity (
    run_id          INTEGER   NOT NULL,
    layer           SMALLINT  NOT NULL,
    feature         INTEGER   NOT NULL,
    n_active        BIGINT    NOT NULL,
    mean_activation DOUBLE    NOT NULL,
    max_activation  FLOAT     NOT NULL,
    top_tokens      VARCHAR[] NOT NULL
);
COMMENT ON TABLE  feature_activity IS 'How often each feature fires and on what, of features that fire at least once; filled at finish. The view features shows it.';
COMMENT ON COLUMN feature_activity.run_id IS 'Run.';
COMMENT ON COLUMN feature_activity.layer IS 'Layer.';
COMMENT ON COLUMN feature_activity.feature IS 'Feature, from 0.';
COMMENT ON COLUMN feature_activity.n_active IS 'Included tokens at which it is active.';
COMMENT ON COLUMN feature_activity.mean_activation IS 'Mean of a where it is active.';
COMMENT ON COLUMN feature_activity.max_activation IS 'Largest a.';
COMMENT ON COLUMN feature_activity.top_tokens IS 'Texts of the tokens of its 8 strongest activations, strongest first; of equal ones the earlier token.';

DELETE FROM layer_tokens;
INSERT INTO layer_tokens
SELECT run_id, layer, reason, count(*), count(*) FILTER (counted)
FROM token_layers
GROUP BY run_id, layer, reason
ORDER BY ALL;

DELETE FROM layer_energies;
INSERT INTO layer_energies
WITH placed AS (
    SELECT e.run_id, e.energy, e.layer, d.category, e.value, e.kl_to_output
    FROM energies AS e
    JOIN runs AS r USING (run_id)
    JOIN contexts AS c ON c.run_id = e.run_id AND c.context_id = e.token_id // r.context_length
    JOIN documents AS d ON d.run_id = e.run_id AND d.document_id = c.document_id
),
grouped AS (
    SELECT
        run_id,
        energy,
        layer,
        category,
        count(*) AS n_tokens,
        avg(value) AS mean,
        stddev_pop(value) AS sd,
        quantile_cont(value, [0.05, 0.25, 0.5, 0.75, 0.95]) AS quantiles,
        avg(kl_to_output) AS kl_to_output
    FROM placed
    GROUP BY GROUPING SETS ((run_id, energy, layer, category), (run_id, energy, layer))
)
SELECT
    run_id, energy, layer, category, n_tokens, mean, sd,
    quantiles[1], quantiles[2], quantiles[3], quantiles[4], quantiles[5], kl_to_output
FROM grouped
ORDER BY run_id, energy, layer, category;

DELETE FROM layer_losses;
INSERT INTO layer_losses
SELECT e.run_id, e.energy, t.layer, fsum(e.value)
FROM energies AS e
JOIN run_energies AS x USING (run_id, energy)
JOIN token_layers AS t ON t.run_id = e.run_id AND t.token_id = e.token_id AND t.layer = coalesce(e.layer, t.layer)
WHERE t.included AND x.is_loss
GROUP BY e.run_id, e.energy, t.layer
ORDER BY ALL;

DELETE FROM feature_activity;
INSERT INTO feature_activity
WITH fired AS (
    SELECT
        run_id,
        layer,
        feature,
        count(*) AS n_active,
        avg(activation) AS mean_activation,
        max(activation) AS max_activation,
        max_by(token_id, {'activation': activation, 'earlier': -token_id}, 8) AS strongest
    FROM activations
    GROUP BY run_id, layer, feature
),
read AS (
    SELECT s.run_id, s.layer, s.feature, list(t.text ORDER BY s.place) AS top_tokens
    FROM (
        SELECT run_id, layer, feature, unnest(strongest) AS token_id, generate_subscripts(strongest, 1) AS place
        FROM fired
    ) AS s
    JOIN tokens AS t USING (run_id, token_id)
    GROUP BY s.run_id, s.layer, s.feature
)
SELECT f.run_id, f.layer, f.feature, f.n_active, f.mean_activation, f.max_activation, r.top_tokens
FROM fired AS f
JOIN read AS r USING (run_id, layer, feature)
ORDER BY f.run_id, f.layer, f.feature;
