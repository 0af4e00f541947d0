-- The energies of each run with what the program knows of them, so that none is known by its name alone.

CREATE TABLE IF NOT EXISTS run_energies (
    run_id     INTEGER NOT NULL,
    energy     VARCHAR NOT NULL,
    position   INTEGER NOT NULL,
    units      VARCHAR NOT NULL,
    at_layers  BOOLEAN NOT NULL,
    is_loss    BOOLEAN NOT NULL,
    is_control BOOLEAN NOT NULL,
    identity   VARCHAR,
    source     VARCHAR
);
COMMENT ON TABLE  run_energies IS 'The energies of each run: units, where they are read, and what may be expected of them.';
COMMENT ON COLUMN run_energies.run_id IS 'Run.';
COMMENT ON COLUMN run_energies.energy IS 'Energy.';
COMMENT ON COLUMN run_energies.position IS 'Place among the run''s energies, from 0.';
COMMENT ON COLUMN run_energies.units IS 'Units of the energy.';
COMMENT ON COLUMN run_energies.at_layers IS 'Whether it is read at each hooked layer, and not once at the model''s output.';
COMMENT ON COLUMN run_energies.is_loss IS 'Whether it is minus the log probability of the next token, so that a uniform guess costs ln V.';
COMMENT ON COLUMN run_energies.is_control IS 'Whether features are aligned with it by construction: a positive control, which is no finding.';
COMMENT ON COLUMN run_energies.identity IS 'Its version, and whatever else its numbers depend on; a part of the run''s identity.';
COMMENT ON COLUMN run_energies.source IS 'What makes it: a name of this package, or package.module:Class; NULL for one from outside in a run of before this table.';

-- Runs of before this table: the package's own energies are known by their names, and of those from outside it can be
-- seen whether they are read at layers, once a token is stored.
INSERT INTO run_energies BY NAME
WITH listed AS (
    SELECT
        run_id,
        settings,
        unnest(energies) AS energy,
        unnest(energy_units) AS units,
        unnest(range(len(energies)))::INTEGER AS position
    FROM runs
    WHERE run_id NOT IN (SELECT run_id FROM run_energies)
),
known AS (
    SELECT *, energy IN ('nll', 'logit_lens', 'tuned_lens', 'attention', 'hopfield') AS is_own
    FROM listed
),
outside AS (
    SELECT run_id, energy, bool_or(layer IS NOT NULL) AS at_layers
    FROM energies
    WHERE energy NOT IN ('nll', 'logit_lens', 'tuned_lens', 'attention', 'hopfield')
    GROUP BY ALL
)
SELECT
    k.run_id,
    k.energy,
    k.position,
    k.units,
    CASE WHEN k.is_own THEN k.energy <> 'nll' ELSE coalesce(o.at_layers, true) END AS at_layers,
    k.energy IN ('nll', 'logit_lens', 'tuned_lens') AS is_loss,
    k.energy = 'hopfield' AS is_control,
    json_extract_string(k.settings, '$.energies.' || k.energy) AS identity,
    CASE WHEN k.is_own THEN k.energy END AS source
FROM known AS k
LEFT JOIN outside AS o USING (run_id, energy)
ORDER BY k.run_id, k.position;

COMMENT ON COLUMN energies.energy IS 'Energy; run_energies has its units.';
