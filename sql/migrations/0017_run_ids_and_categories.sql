-- No run id is given twice: rows that outlive their run must not become another one's.
CREATE TABLE IF NOT EXISTS run_ids (
    id         INTEGER   NOT NULL,
    given_at   TIMESTAMP NOT NULL,
    deleted_at TIMESTAMP
);
COMMENT ON TABLE  run_ids IS 'One row per run id that was given out in this file, since this table is there; no id is given twice.';
COMMENT ON COLUMN run_ids.id IS 'Run id; its run may be gone.';
COMMENT ON COLUMN run_ids.given_at IS 'UTC time at which the run began.';
COMMENT ON COLUMN run_ids.deleted_at IS 'UTC time at which elw runs --delete removed the run; NULL while it is there.';
INSERT INTO run_ids
SELECT run_id, min(created_at), NULL
FROM runs
ANTI JOIN run_ids ON run_ids.id = runs.run_id
GROUP BY run_id;

-- Files that are given singly share their folder's category, and no category has the name of a total.
COMMENT ON COLUMN documents.category IS 'First folder below the given path, else that path''s own name; of a file given singly, the name of its folder. A folder called all or macro, which are words for totals, has a slash behind it.';
