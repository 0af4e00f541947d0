"""The warehouse file: made whole or not at all, opened or refused with a sentence, and what a reader cannot do."""

from __future__ import annotations

import datetime
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

import energy_lens
from energy_lens.errors import ElwError, UsageError, WarehouseError
from energy_lens.warehouse import database
from energy_lens.warehouse.database import LockedError, Warehouse

PACKAGE_PARENT = Path(energy_lens.__file__).parent / ".types"
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{PACKAGE_PARENT}:{os.environ.get('PYTHONPATH', '')}"}


def python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A Python process in which Ctrl-C works, even when this one was started in the background."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.fixture
def db(empty_warehouse: Path, tmp_path: Path) -> Path:
    """A warehouse without runs, to be spoilt."""
    return Path(shutil.copy(empty_warehouse, tmp_path))


@pytest.fixture(scope="module")
def reader(empty_warehouse: Path) -> Iterator[Warehouse]:
    with Warehouse(empty_warehouse) as warehouse:
        yield warehouse


# ------------------------------------------------------------------------------------------------ making one


def test_new_file_has_the_schema_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    db = tmp_path / "elw.duckdb"
    Warehouse(db, writable=True).close()
    assert [path.name for path in db.parent.iterdir()] == [db.name]
    with Warehouse(db) as warehouse:
        assert warehouse.behind is False
        assert warehouse.sql("SELECT count(*) FROM runs").value() == 0
        assert warehouse.sql("SELECT count(*) FROM efas").value() == 0


def test_killed_while_it_is_made_leaves_no_file_and_does_not_block_the_next(tmp_path: Path) -> None:
    """kill -9 before the file gets its name: nothing of that name, and the next one makes it."""
    path = tmp_path / "elw.duckdb"
    code = """
import os, signal, sys
from energy_lens.warehouse import database
database.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
database.Warehouse(sys.argv[1], writable=True)
"""
    process = python(code, path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not path.exists()
    assert (tmp_path / "elw.duckdb.new").exists()
    (tmp_path / "elw.duckdb.new.wal").write_bytes(b"left over")
    Warehouse(path, writable=True).close()
    assert [file.name for file in tmp_path.iterdir()] == ["elw.duckdb"]


def test_failure_while_it_is_made_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise duckdb.IOException("IO Error: Could not write file: No space left on device")

    monkeypatch.setattr(database.migrations, "migrate", fail)
    with pytest.raises(ElwError, match="The disk is full"):
        Warehouse(tmp_path / "elw.duckdb", writable=True)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_make_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "elw.duckdb"
    code = "import sys; from energy_lens import Warehouse; Warehouse(sys.argv[1], writable=True).close()"
    processes = [python(code, path) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert [file.name for file in tmp_path.iterdir()] == ["elw.duckdb"]


def test_empty_file_counts_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "elw.duckdb"
    path.touch()
    with Warehouse(path, writable=True) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM runs").value() == 0


def test_log_of_a_file_that_is_gone_is_not_thrown_away(db: Path) -> None:
    log = db.with_name(db.name + ".wal")
    log.write_bytes(b"changes")
    db.unlink()
    with pytest.raises(WarehouseError, match="is left of a warehouse that is gone"):
        Warehouse(db, writable=True)
    assert log.read_bytes() == b"changes"


# ------------------------------------------------------------------------------------------------ opening one


def corrupt(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def foreign(path: Path) -> None:
    path.unlink()
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS a")


def of_a_newer_elw(path: Path) -> None:
    with Warehouse(path, writable=True) as warehouse:
        warehouse.sql("INSERT INTO schema_migrations VALUES (9999, 'later', TIMESTAMP '2030-01-01')")


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (corrupt, "not a readable warehouse"),
    (cut_short, "not a readable warehouse"),
    (empty, "not a readable warehouse"),
    (missing, "There is no warehouse"),
    (folder, "is a folder"),
    (foreign, "a DuckDB file but not a warehouse"),
    (of_a_newer_elw, "newer version of elw"),
]


@pytest.mark.parametrize(("spoil", "reason"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_what_cannot_be_read_is_refused_with_a_sentence(db: Path, spoil: Callable[[Path], None], reason: str) -> None:
    spoil(db)
    with pytest.raises(WarehouseError, match=reason) as caught:
        Warehouse(db)
    assert caught.value.exit_code == 3
    assert str(db) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("spoil", [corrupt, cut_short, folder, foreign, of_a_newer_elw])
def test_what_cannot_be_written_is_refused_and_left_alone(db: Path, spoil: Callable[[Path], None]) -> None:
    spoil(db)
    before = db.read_bytes() if db.is_file() else None
    with pytest.raises(WarehouseError):
        Warehouse(db, writable=True)
    assert before is None or db.read_bytes() == before


def test_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WarehouseError, match=r"folder .* does not exist"):
        Warehouse(tmp_path / "nowhere" / "elw.duckdb", writable=True)


def test_older_file_is_read_as_it_is_and_migrated_by_a_writer(db: Path) -> None:
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("DELETE FROM schema_migrations WHERE number = (SELECT max(number) FROM schema_migrations)")
    with Warehouse(db) as warehouse:
        assert warehouse.behind is True
        assert warehouse.sql("SELECT 1").value() == 1


HOLD = """
import sys
from energy_lens import Warehouse
with Warehouse(sys.argv[1], writable=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("writable", [False, True])
def test_file_held_by_another_process_names_it(db: Path, writable: bool) -> None:
    holder = python(HOLD, db)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(LockedError, match=rf"process {holder.pid}\)") as caught:
            Warehouse(db, writable=writable, wait_seconds=0.1)
        assert caught.value.exit_code == 3
    finally:
        holder.communicate()


def test_reader_waits_for_the_file(db: Path) -> None:
    holder = python(HOLD, db)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    threading.Timer(0.3, holder.communicate).start()
    with Warehouse(db, wait_seconds=60) as warehouse:
        assert warehouse.sql("SELECT 1").value() == 1


# ------------------------------------------------------------------------------------------------ a reader's reach

OUT_OF_REACH = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM glob('/*')",
    "FROM '/etc/passwd'",
    "COPY runs TO '{folder}/out.csv'",
    "COPY (SELECT 1) TO '{folder}/out.parquet'",
    "EXPORT DATABASE '{folder}/out'",
    "ATTACH '{folder}/other.duckdb'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA threads = 1",
    # DuckDB allows a warehouse's own files whatever the settings are, so these would destroy it:
    "COPY (SELECT 1) TO '{db}' (FORMAT csv, USE_TMP_FILE false)",
    "COPY (SELECT 1) TO '{db}.wal' (FORMAT csv, USE_TMP_FILE false)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{db}' (FORMAT csv, USE_TMP_FILE false)",
    "PREPARE v AS COPY (SELECT 1) TO '{db}' (FORMAT csv, USE_TMP_FILE false); EXECUTE v",
    "EXPORT DATABASE '{db}.tmp'",
    "ATTACH '{db}' AS again",
    "SELECT 1; COPY (SELECT 1) TO '{db}' (FORMAT csv, USE_TMP_FILE false)",
    "IMPORT DATABASE '{folder}'",
    "COPY FROM DATABASE elw TO memory",
]

CHANGES = [
    "CREATE TABLE mine (a INTEGER)",
    "INSERT INTO models SELECT * FROM models",
    "DELETE FROM runs",
    "UPDATE runs SET seed = 1",
    "DROP VIEW efas",
    "ALTER TABLE runs ADD COLUMN a INTEGER",
    "COMMENT ON TABLE runs IS 'mine'",
]


@pytest.mark.parametrize("query", OUT_OF_REACH + CHANGES)
def test_reader_reaches_no_files_and_changes_nothing(db: Path, query: str) -> None:
    before = db.read_bytes()
    with Warehouse(db) as warehouse, pytest.raises(UsageError):
        warehouse.sql(query.format(db=db, folder=db.parent)).fetchall()
    assert [path.name for path in db.parent.iterdir()] == [db.name]
    assert db.read_bytes() == before


@pytest.mark.parametrize("query", OUT_OF_REACH)
def test_restricted_writer_reaches_no_files(db: Path, query: str) -> None:
    with Warehouse(db, writable=True, restricted=True) as warehouse:
        with pytest.raises(UsageError):
            warehouse.sql(query.format(db=db, folder=db.parent)).fetchall()
        assert warehouse.sql("SELECT count(*) FROM runs").value() == 0
    assert {path.name for path in db.parent.iterdir()} <= {db.name, db.name + ".wal"}


def test_reader_may_still_make_temporary_tables_and_explain(reader: Warehouse) -> None:
    reader.sql("CREATE OR REPLACE TEMP TABLE scratch AS SELECT 'to copy' AS a")
    assert reader.sql("SELECT a FROM scratch").value() == "to copy"
    assert "Total Time" in reader.sql("EXPLAIN ANALYZE SELECT a FROM scratch").fetchall()[0][1]


def test_sort_larger_than_memory_spills_to_disk(db: Path) -> None:
    """No file access does not mean no room for a large query."""
    query = (
        "SELECT count(z) FROM (SELECT i, i::VARCHAR || repeat('y', 80) AS z FROM range(1_000_000) r(i) "
        "ORDER BY z OFFSET 10)"
    )
    with Warehouse(db, config={"memory_limit": "60MB", "threads": "1"}) as warehouse:
        assert warehouse.sql(query).value() == 1_000_000 - 10


# ------------------------------------------------------------------------------------------------ statements


def test_script_is_cut_into_statements(reader: Warehouse) -> None:
    script = "-- first\nSELECT ';' AS a, $b; ; /* ; */ SELECT $c + $b;"
    statements = reader.statements(script)
    assert [statement.parameters for statement in statements] == [{"b"}, {"b", "c"}]
    assert reader.statements(" -- nothing\n;") == []
    with pytest.raises(UsageError, match="syntax error"):
        reader.statements("SELEC 1")


def test_failed_transaction_leaves_nothing(db: Path) -> None:
    insert = "INSERT INTO document_aliases VALUES (1, 1, 'a')"

    def fail(warehouse: Warehouse, error: BaseException) -> None:
        with warehouse.transaction():
            warehouse.sql(insert)
            raise error

    with Warehouse(db, writable=True) as warehouse:
        for error in (KeyboardInterrupt(), UsageError("wrong")):
            with pytest.raises(type(error)):
                fail(warehouse, error)
        assert warehouse.sql("SELECT count(*) FROM document_aliases").value() == 0
        with warehouse.transaction():
            warehouse.sql(insert)
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM document_aliases").value() == 1


def test_interrupt_stops_a_query_and_undoes_its_transaction(db: Path) -> None:
    """Ctrl-C while DuckDB works ends the query, not only the wait for it."""
    code = """
import sys
from energy_lens import Warehouse
warehouse = Warehouse(sys.argv[1], writable=True)
try:
    with warehouse.transaction():
        warehouse.sql("INSERT INTO document_aliases VALUES (1, 1, 'a')")
        print("running", flush=True)
        warehouse.sql("SELECT count(*) FROM range(100_000_000_000_000)").fetchall()
except KeyboardInterrupt:
    print("stopped", warehouse.sql("SELECT count(*) FROM document_aliases").value())
"""
    process = python(code, db)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert (output, process.returncode) == ("stopped 0\n", 0)
    assert "Traceback" not in errors  # DuckDB 2.0.0 may complain about leaks of its own here


# ------------------------------------------------------------------------------------------------ frames

INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(width=32)
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
TIMES = st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1))


def column(values: st.SearchStrategy[object]) -> st.SearchStrategy[list[object]]:
    return st.lists(st.none() | values, min_size=3, max_size=3)


def as_text(values: Any) -> list[str | None]:
    return [None if value is None else repr(value) for value in values]


def same(left: object, right: object) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left is not None and right is not None and left != left and right != right)


@given(
    column(INTEGERS),
    column(FLOATS),
    column(TEXTS),
    column(st.booleans()),
    column(TIMES),
    column(st.dates(datetime.date(1970, 1, 1))),
    column(st.lists(st.none() | FLOATS, max_size=3)),
    column(st.lists(st.none() | TEXTS, max_size=3)),
    st.booleans(),
)
def test_frame_holds_what_the_rows_hold(
    reader: Warehouse,
    integers: list[object],
    floats: list[object],
    texts: list[object],
    booleans: list[object],
    times: list[object],
    dates: list[object],
    vectors: list[object],
    words: list[object],
    through_rows: bool,
) -> None:
    """Values, NULL against NaN, empty lists against NULL, and types: through numpy and through Python objects."""
    query = """SELECT unnest($integers::BIGINT[]) AS i, unnest($floats::VARCHAR[]::FLOAT[]) AS f,
        unnest($texts::VARCHAR[]) AS t, unnest($booleans::BOOLEAN[]) AS b, unnest($times::TIMESTAMP[]) AS ts,
        unnest($dates::DATE[]) AS d, unnest($vectors::VARCHAR[][]::FLOAT[][]) AS v, unnest($words::VARCHAR[][]) AS w"""
    # Numbers go in as text: DuckDB 1.5 takes a NaN inside a list for NULL.
    parameters = {
        "integers": integers, "floats": floats, "texts": texts, "booleans": booleans, "times": times, "dates": dates,
        "vectors": vectors, "words": words,
    }  # fmt: skip
    expected = list(zip(*parameters.values(), strict=True))
    if through_rows:  # a type that numpy would round
        query += ", 1::HUGEINT AS h"
        expected = [(*row, 1) for row in expected]
    parameters["floats"] = as_text(floats)
    parameters["vectors"] = [vector and as_text(vector) for vector in vectors]
    frame = reader.sql(query, **parameters).pl()
    assert all(same(list(left), list(right)) for left, right in zip(frame.rows(), expected, strict=True))
    expected_types = [
        polars.Int64, polars.Float32, polars.String, polars.Boolean, polars.Datetime("us"), polars.Date,
        polars.List(polars.Float32), polars.List(polars.String),
    ]  # fmt: skip
    assert frame.dtypes[:8] == expected_types


def test_frame_of_no_rows_keeps_its_types(reader: Warehouse) -> None:
    query = "SELECT 1::SMALLINT AS a, 'x' AS b, [1.5::FLOAT] AS c, 1::HUGEINT AS d, 1.5::DECIMAL(9,2) AS e WHERE false"
    frame = reader.sql(query).pl()
    assert frame.shape == (0, 5)
    assert frame.dtypes == [
        polars.Int16,
        polars.String,
        polars.List(polars.Float32),
        polars.Int128,
        polars.Decimal(9, 2),
    ]


def test_frame_keeps_large_integers_decimals_and_nested_values(reader: Warehouse) -> None:
    query = """SELECT 170141183460469231731687303715884105727::HUGEINT AS h, 12345678901234567.89::DECIMAL(20,2) AS d,
        {'a': 1, 'b': [1, 2]} AS s, '\\xAA'::BLOB AS b, uuid() AS u, 'x'::ENUM('x', 'y') AS e, [[1, NULL], []] AS ll"""
    frame = reader.sql(query).pl()
    assert frame["h"].to_list() == [2**127 - 1]
    assert str(frame["d"][0]) == "12345678901234567.89"
    assert frame["s"].to_list() == [{"a": 1, "b": [1, 2]}]
    assert frame["b"].to_list() == [b"\xaa"]
    assert frame["e"].to_list() == ["x"]
    assert frame["ll"].to_list() == [[[1, None], []]]


def test_frame_numbers_repeated_names(reader: Warehouse) -> None:
    assert reader.sql("SELECT 1 AS a, 2 AS a, 3 AS A, 4 AS a_1").pl().columns == ["a", "a_1", "A", "a_1_1"]


def test_frame_of_many_rows(reader: Warehouse) -> None:
    query = "SELECT i::FLOAT AS x, CASE WHEN i % 3 > 0 THEN i END AS n, [i, 1] AS v FROM range(300_000) r(i)"
    frame = reader.sql(query).pl()
    assert frame["n"].null_count() == 100_000
    assert frame["x"].sum() == pytest.approx(300_000 * 299_999 / 2, rel=1e-6)
    assert frame["v"].list.get(0).to_list() == list(range(300_000))


def test_frame_goes_back_into_a_table(db: Path) -> None:
    frame = polars.DataFrame({"path": ["b", "a"], "run_id": [1, 1], "document_id": [2, 1]})
    with Warehouse(db, writable=True) as warehouse:
        warehouse.append("document_aliases", frame, order_by=["document_id"])
        rows = warehouse.sql("SELECT document_id, path, run_id FROM document_aliases").fetchall()
    assert rows == [(1, "a", 1), (2, "b", 1)]


def test_nothing_is_printed_when_python_ends(db: Path) -> None:
    """DuckDB 2.0.0 prints pages about leaks when a frame is taken from it directly, and a progress bar on stdout."""
    code = """
import sys
from energy_lens import Warehouse
warehouse = Warehouse(sys.argv[1])
print(warehouse.sql("SELECT 1 AS a, [1.5::FLOAT] AS b").pl().rows())
print(warehouse.sql("SELECT 1::HUGEINT AS a").pl().rows())
print(warehouse.sql("SELECT current_setting('enable_progress_bar')").value())
"""
    process = python(code, db)
    assert process.communicate() == ("[(1, [1.5])]\n[(1,)]\nFalse\n", "")


def test_value_of_nothing_is_none(reader: Warehouse) -> None:
    assert reader.sql("SELECT 1 WHERE false").value() is None
    assert math.isnan(reader.sql("SELECT 'nan'::DOUBLE").value())
