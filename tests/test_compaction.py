"""`elw compact`: the same warehouse, sorted; whatever kills it, whoever has the file open, whatever else is in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from energy_lens.cli.main import main
from energy_lens.errors import ElwError, UsageError, WarehouseError
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.sql import identifier
from energy_lens.warehouse import compaction
from energy_lens.warehouse.compaction import compact
from energy_lens.warehouse.database import LockedError, Warehouse, ingest_lock
from energy_lens.warehouse.interrupts import translated_errors
from energy_lens.warehouse.physical_order import SORTED_BY

#: What somebody may have made in a warehouse of his own, with every kind of thing that DuckDB keeps.
OWN = """
CREATE SCHEMA mine;
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE SEQUENCE numbers START 5;
CREATE TABLE notes (
    id INTEGER PRIMARY KEY DEFAULT nextval('numbers'), mood mood, x DOUBLE CHECK (x > 0),
    twice DOUBLE GENERATED ALWAYS AS (x * 2), name VARCHAR UNIQUE COLLATE nocase
);
COMMENT ON TABLE notes IS 'My notes.';
COMMENT ON COLUMN notes.x IS 'It''s mine.';
INSERT INTO notes (mood, x, name) VALUES ('calm', 1, 'first'), ('cross', 2, 'second');
CREATE TABLE about_notes (
    id INTEGER REFERENCES notes(id), s STRUCT(a INTEGER, b VARCHAR[]), m MAP(VARCHAR, INTEGER), d DECIMAL(10, 2),
    made_at TIMESTAMP, nothing INTEGER
);
INSERT INTO about_notes VALUES (5, {a: 1, b: ['x']}, MAP {'k': 1}, 1.5, TIMESTAMP '2026-01-02 03:04:05', NULL);
CREATE INDEX by_d ON about_notes(d);
CREATE TABLE mine."odd ""name"" here" ("a column" INTEGER, a INTEGER DEFAULT 7);
INSERT INTO mine."odd ""name"" here" VALUES (1, 2), (1, 2), (3, NULL);
CREATE TABLE mine.activations (layer INTEGER);
INSERT INTO mine.activations VALUES (2), (1);
CREATE VIEW on_another AS SELECT * FROM a_view_of_notes_to_come_first;
CREATE VIEW without_x AS SELECT * EXCLUDE (x, twice, name) FROM notes;
COMMENT ON VIEW without_x IS 'A view.';
COMMENT ON COLUMN without_x.mood IS 'How it is.';
CREATE MACRO plus(a, b := 3) AS a + b;
CREATE MACRO first_notes(n) AS TABLE SELECT * FROM notes ORDER BY id LIMIT n;
COMMENT ON MACRO plus IS 'A sum.';
DROP TABLE a_view_of_notes_to_come_first;
"""


@pytest.fixture(scope="module")
def settings(tiny: Callable[..., Any]) -> dict[str, Any]:
    """Of a run that has rows in every table of an ingest."""
    return {
        "model": str(tiny("llama").folder), "saes": (tiny("llama").saes,), "energies": ("nll", "hopfield"),
        "context_length": 16, "dtype": "float32", "store_gradients": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], few_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through, whose groups lie one behind the other; only copy it."""
    db = tmp_path_factory.mktemp("whole") / "elw.duckdb"
    ingest([few_texts], IngestOptions(db=db, **settings))
    return db


@pytest.fixture
def db(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "elw.duckdb"))


def rows_of(db: Path) -> dict[str, tuple[int, int]]:
    """For every table its number of rows and a sum over them, as they read, that no order changes."""
    with duckdb.connect(str(db), read_only=True) as connection:
        tables = connection.execute("SELECT schema_name, table_name FROM duckdb_tables() WHERE NOT internal").fetchall()
        query = "SELECT count(*), sum(CAST(hash(CAST(t AS VARCHAR)) AS HUGEINT)) FROM {}.{} AS t"
        return {
            f"{schema}.{table}": connection.execute(query.format(identifier(schema), identifier(table))).fetchall()[0]
            for schema, table in tables
        }


def definitions_of(db: Path) -> dict[str, list[Any]]:
    """What the file defines, as it reads itself; numbers that a file gives on opening are left out."""
    found: dict[str, list[Any]] = {}
    skipped = ("database_name", "estimated_size", "constraint_index")
    with duckdb.connect(str(db), read_only=True) as connection:
        for kind in ("tables", "columns", "views", "constraints", "functions", "sequences", "indexes", "types"):
            result = connection.execute(f"SELECT * FROM duckdb_{kind}() WHERE database_name = current_database()")
            names = [column[0] for column in result.description]
            places = [i for i, name in enumerate(names) if not name.endswith("oid") and name not in skipped]
            internal = names.index("internal") if "internal" in names else None
            found[kind] = sorted(
                # As words: the names of an EXCLUDE list come in another order whenever a file is read.
                repr([sorted(re.findall(r"\w+", str(row[i]))) for i in places])
                for row in result.fetchall()
                if internal is None or not row[internal]
            )
    return found


def is_sorted(db: Path, table: str) -> bool:
    keys = ", ".join(("run_id", *SORTED_BY[table]))
    with duckdb.connect(str(db), read_only=True) as connection:
        found = connection.execute(f"SELECT {keys} FROM {table}").fetchall()
        return found == connection.execute(f"SELECT {keys} FROM {table} ORDER BY {keys}").fetchall()


def own(db: Path) -> None:
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("CREATE TABLE a_view_of_notes_to_come_first (a INTEGER)")
        for statement in warehouse.statements(OWN):
            warehouse.sql(statement.text)


# ------------------------------------------------------------------------------------------------ the same, sorted


def test_the_same_warehouse_comes_out_sorted(
    tiny_warehouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows, definitions, comments, mode; and every promise is kept. Nothing is left beside it but the lock."""
    db = Path(shutil.copy(tiny_warehouse, tmp_path / "elw.duckdb"))
    os.chmod(db, 0o640)
    rows, definitions = rows_of(db), definitions_of(db)
    assert len(definitions["tables"]) > 30
    assert not is_sorted(db, "activations")
    assert main(["compact", "--db", str(db), "--format", "json"]) == 0
    output, said = capsys.readouterr()
    (size, look_up) = json.loads(output)
    assert size["figure"] == "bytes"
    assert size["after"] == db.stat().st_size
    assert look_up["after"] > 0
    assert "is sorted now, and" in said
    assert rows_of(db) == rows
    assert definitions_of(db) == definitions
    assert all(is_sorted(db, table) for table in SORTED_BY)
    assert stat.S_IMODE(db.stat().st_mode) == 0o640
    assert sorted(path.name for path in db.parent.iterdir()) == ["elw.duckdb", "elw.duckdb.ingest.lock"]
    assert main(["check", "--db", str(db)]) == 0


def test_a_compact_file_is_left_as_it_is(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compact(db).rewritten
    before = db.stat()
    capsys.readouterr()
    assert main(["compact", "--db", str(db)]) == 0
    assert "was and is compact" in capsys.readouterr().err
    assert (db.stat().st_ino, db.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_a_user_made_is_kept(db: Path) -> None:
    """Tables, keys, checks, defaults, enumerations, sequences where they stand, indexes, views that lead nowhere."""
    own(db)
    rows, definitions = rows_of(db), definitions_of(db)
    assert rows['mine.odd "name" here'][0] == 3
    assert compact(db).rewritten
    assert rows_of(db) == rows
    assert definitions_of(db) == definitions
    with Warehouse(db, writable=True) as warehouse:
        assert warehouse.sql("SELECT nextval('numbers')").value() == 7
        assert warehouse.sql("SELECT plus(1)").value() == 4
        assert warehouse.sql("SELECT layer FROM mine.activations").fetchall() == [(2,), (1,)]
        assert len(warehouse.sql("FROM first_notes(1)").fetchall()) == 1
        with pytest.raises(UsageError, match="Constraint"):
            warehouse.sql("INSERT INTO notes (mood, x, name) VALUES ('calm', -1, 'third')")
        with pytest.raises(UsageError, match="Constraint"):
            warehouse.sql("DELETE FROM notes WHERE id = 5")


def test_keys_of_the_physical_order_are_keys(tiny_warehouse: Path) -> None:
    """So that the order is the same whoever sorts; and every table of a group has one."""
    with Warehouse(tiny_warehouse) as warehouse:
        for table, keys in SORTED_BY.items():
            columns = ", ".join(("run_id", *keys))
            query = f"SELECT count(*) FROM (SELECT {columns} FROM {table} GROUP BY ALL HAVING count(*) > 1)"
            assert warehouse.sql(query).value() == 0, table


def test_an_ingest_goes_on_in_a_compacted_file(
    settings: dict[str, Any], few_texts: Path, whole: Path, tmp_path: Path
) -> None:
    """Half a run, compacted, and the rest: the tables of a run that went through; then it is compacted again."""
    db = tmp_path / "elw.duckdb"
    assert ingest([few_texts], IngestOptions(db=db, **settings, max_tokens=1)).new_groups == 1
    compact(db)
    assert ingest([few_texts], IngestOptions(db=db, **settings)).new_groups > 0
    assert not is_sorted(db, "activations")
    assert compact(db).rewritten
    assert main(["check", "--db", str(db)]) == 0
    for table, keys in SORTED_BY.items():
        columns = ", ".join(("run_id", *keys))
        query = f"SELECT {columns} FROM {table} ORDER BY ALL"
        with Warehouse(db) as one, Warehouse(whole) as other:
            assert one.sql(query).fetchall() == other.sql(query).fetchall(), table
    query = (
        "SELECT layer, feature, energy, gradient, category, half, sum_s, sum_ag FROM feature_statistics ORDER BY ALL"
    )
    with Warehouse(db) as one, Warehouse(whole) as other:
        for row, expected in zip(one.sql(query).fetchall(), other.sql(query).fetchall(), strict=True):
            assert row[:6] == expected[:6]
            assert row[6:] == pytest.approx(expected[6:], rel=1e-9, abs=1e-12)


def test_an_older_file_stays_an_older_one(db: Path) -> None:
    with duckdb.connect(str(db)) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE number = 11")
    compact(db)
    with Warehouse(db) as warehouse:
        assert warehouse.behind


def test_an_empty_warehouse_has_nothing_to_sort(tmp_path: Path) -> None:
    db = tmp_path / "elw.duckdb"
    Warehouse(db, writable=True).close()
    gain = compact(db)
    assert gain.seconds_after is None
    assert main(["compact", "--db", str(db)]) == 0


def test_a_link_stays_a_link(db: Path) -> None:
    link = db.with_name("link.duckdb")
    link.symlink_to(db)
    assert compact(link).path == db
    assert link.is_symlink()
    assert is_sorted(db, "activations")


# ------------------------------------------------------------------------------------------------ killed

KILLED = """
import os, signal, sys
from pathlib import Path
from energy_lens.warehouse import compaction, database

step, place = sys.argv[2], int(sys.argv[3])

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if step == "statement":
    calls, run = [], database.Warehouse.sql
    def counted(self, *arguments, **parameters):
        calls.append(arguments)
        if len(calls) == place:
            die()
        return run(self, *arguments, **parameters)
    database.Warehouse.sql = counted
elif step == "before the name":
    compaction.os.replace = die
else:
    replace = compaction.os.replace
    compaction.os.replace = lambda *paths: (replace(*paths), die())
compaction.compact(Path(sys.argv[1]))
"""


def killed(db: Path, step: str, place: int = 0) -> None:
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(db), step, str(place)], capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize(
    ("step", "place"),
    [("statement", 30), ("statement", 90), ("statement", 150), ("before the name", 0), ("after the name", 0)],
)
def test_killed_anywhere_the_same_command_completes_it(db: Path, step: str, place: int) -> None:
    """kill -9: the file opens with all its rows, before and after, and nothing is left over."""
    rows = rows_of(db)
    killed(db, step, place)
    assert rows_of(db) == rows
    folder = db.with_name(".elw.duckdb.compact")
    assert folder.is_dir()
    assert compact(db).rewritten == (step != "after the name")
    assert rows_of(db) == rows
    assert is_sorted(db, "activations")
    assert not folder.exists()


def test_a_leftover_is_no_corpus_and_no_warehouse(db: Path) -> None:
    """It is passed over as text, refused as a warehouse, and removed by whoever next holds the lock of ingests."""
    killed(db, "before the name")
    left = db.parent / ".elw.duckdb.compact" / "elw.duckdb"
    assert left.exists()
    (db.parent / "a.txt").write_text("Some text.")
    assert [document.path for document in discover([db.parent])] == ["a.txt"]
    for writable in (False, True):
        with pytest.raises(WarehouseError, match=r"unfinished work of elw compact: name .*/elw\.duckdb with --db"):
            Warehouse(left, writable=writable)
    with ingest_lock(db):
        assert not left.parent.exists()


# ------------------------------------------------------------------------------------------------ others at the file


def another(db: Path, code: str) -> subprocess.Popen[str]:
    """A process that has the file open; it says so, and ends when its stdin closes."""
    head = "import sys, duckdb\nfrom pathlib import Path\ndb = sys.argv[1]"
    script = f"{head}\n{code}\nprint(1, flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


def test_readers_go_on_and_writers_are_respected(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence while an ingest or a writer has the file; a reader keeps what it has opened."""
    monkeypatch.setattr("energy_lens.warehouse.database.READER_WAIT_SECONDS", 0.1)
    rows = rows_of(db)
    lock = "from energy_lens.warehouse.database import ingest_lock\nheld = ingest_lock(Path(db))\nheld.__enter__()"
    for code, found in ((lock, "is being written by elw ingest"), ("c = duckdb.connect(db)", "is held by")):
        process = another(db, code)
        with pytest.raises(LockedError, match=rf"{found}.*process {process.pid}") as raised:
            compact(db)
        assert "\n" not in str(raised.value)
        process.communicate("")
        assert rows_of(db) == rows
    reader = another(db, "c = duckdb.connect(db, read_only=True)")
    assert compact(db).rewritten
    reader.communicate("")
    assert rows_of(db) == rows


def test_what_a_killed_writer_left_in_its_log_is_kept(db: Path) -> None:
    code = "c = duckdb.connect(db)\nc.execute(\"UPDATE runs SET model = 'of the log'\")"
    process = another(db, code)
    process.kill()
    process.communicate()
    log = db.with_name("elw.duckdb.wal")
    assert log.stat().st_size > 0
    assert compact(db).rewritten
    assert not log.exists()
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT model FROM runs").value() == "of the log"


# ------------------------------------------------------------------------------------------------ refused


def test_a_copy_that_is_not_equal_is_refused(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value or one comment that differs, and the old file stays, byte for byte."""
    content = db.read_bytes()
    copied = compaction.copy_rows

    def spoiled(statement: str) -> Callable[..., None]:
        def copy(warehouse: Warehouse, old: str, new: str, tables: list[Any]) -> None:
            copied(warehouse, old, new, tables)
            warehouse.sql(statement.format(f'"{new}"')).fetchall()

        return copy

    for statement, found in (
        ("UPDATE {}.activations SET activation = activation + 1 WHERE rowid = 17", "rows of activations"),
        ("DELETE FROM {}.models", "rows of models"),
        ("COMMENT ON COLUMN {}.runs.seed IS 'Another.'", r"column runs\.seed"),
        ("DROP VIEW {}.efas", "efas"),
    ):
        monkeypatch.setattr(compaction, "copy_rows", spoiled(statement))
        with pytest.raises(ElwError, match=f"{found}.* stays as it is"):
            compact(db)
        assert db.read_bytes() == content
        assert not db.with_name(".elw.duckdb.compact").exists()


def test_what_cannot_be_made_again_is_named(db: Path) -> None:
    """Rows that refer to others of their own table cannot be inserted in one go; nothing is lost."""
    with duckdb.connect(str(db)) as connection:
        connection.execute("CREATE TABLE tree (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES tree(id))")
        for row in ("(1, NULL)", "(2, 1)"):
            connection.execute(f"INSERT INTO tree VALUES {row}")
    rows = rows_of(db)
    with pytest.raises(ElwError, match=r"stays as it is \(table tree, .*\): drop what that names\.$") as raised:
        compact(db)
    assert "\n" not in str(raised.value)
    assert rows_of(db) == rows


def test_a_disk_that_fills_up_is_told(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that finds no room fails as a transaction, not as input or output."""
    content = db.read_bytes()

    def full(*_: object) -> None:
        with translated_errors():
            raise duckdb.TransactionException("Failed to commit: Could not write file: No space left on device")

    monkeypatch.setattr(compaction, "copy_rows", full)
    with pytest.raises(ElwError, match="The disk is full"):
        compact(db)
    assert db.read_bytes() == content


def test_too_little_disk_is_told_before(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = db.read_bytes()
    usage = shutil.disk_usage(db.parent)._replace(free=2 * len(content) - 1)
    monkeypatch.setattr(compaction.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ElwError, match=r"takes \d+ MB of free disk, and \d+ MB are there: make room\.$"):
        compact(db)
    assert db.read_bytes() == content


def test_what_is_no_warehouse_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is made for it either."""
    (tmp_path / "text.duckdb").write_text("no database" * 1_000)
    duckdb.connect(str(tmp_path / "other.duckdb")).close()
    files = sorted(tmp_path.iterdir())
    for name in ("missing.duckdb", "text.duckdb", "other.duckdb"):
        assert main(["compact", "--db", str(tmp_path / name)]) == 3
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == files
