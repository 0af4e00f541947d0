-- Groups of a run may be computed elsewhere: as a shard in another file, or written to a folder or an object store.

CREATE TABLE IF NOT EXISTS staged_groups (
    run_id    INTEGER   NOT NULL,
    group_id  INTEGER   NOT NULL,
    location  VARCHAR   NOT NULL,
    n_rows    BIGINT    NOT NULL,
    n_bytes   BIGINT,
    staged_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE  staged_groups IS 'Groups that are finished and whose rows lie elsewhere, as elw ingest --stage writes them, until elw merge takes them in.';
COMMENT ON COLUMN staged_groups.run_id IS 'Run.';
COMMENT ON COLUMN staged_groups.group_id IS 'Group.';
COMMENT ON COLUMN staged_groups.location IS 'Folder of its files, or the URL of what stands for a folder in an object store.';
COMMENT ON COLUMN staged_groups.n_rows IS 'Rows of all its tables.';
COMMENT ON COLUMN staged_groups.n_bytes IS 'Size of its files; NULL in an object store, which is not asked.';
COMMENT ON COLUMN staged_groups.staged_at IS 'UTC time at which it was complete.';

ALTER TABLE runs ADD COLUMN IF NOT EXISTS shard VARCHAR;
COMMENT ON COLUMN runs.shard IS 'Which part of the plan the last ingest into this file carried out, as elw ingest --shard says it: 3/16 is the third of sixteen. NULL where it was all of it, or elw merge joined the parts.';
