"""Faults that a week of use finds in a warehouse: shared, replaced, full, named oddly, with runs that are gone."""

from __future__ import annotations

import datetime
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

import energy_lens
from energy_lens.cli.main import main
from energy_lens.errors import ElwError, UsageError, WarehouseError
from energy_lens.ingest.pipeline import IngestOptions, commits, ingest
from energy_lens.ingest.pipeline import run as pipeline
from energy_lens.warehouse import sharing
from energy_lens.warehouse.database import LockedError, Warehouse
from energy_lens.warehouse.interrupts import translated_errors
from energy_lens.warehouse.run_rows import delete_run, next_run_id

#: As in test_warehouse: the package as it stands here, in another process.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{Path(energy_lens.__file__).parent / '.types'}:{os.environ.get('PYTHONPATH', '')}"
}

INSERT = "INSERT INTO document_aliases VALUES (1, 1, 'a')"
COUNT = "SELECT count(*) FROM document_aliases"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A warehouse without runs."""
    path = tmp_path / "elw.duckdb"
    Warehouse(path, writable=True).close()
    return path


@pytest.fixture
def options(tiny: Callable[..., Any], tmp_path: Path) -> IngestOptions:
    model = tiny("llama")
    return IngestOptions(
        db=tmp_path / "runs.duckdb", model=str(model.folder), saes=(model.saes,), context_length=32, dtype="float32"
    )


# ------------------------------------------------------------------------------------------------ one file, several


def test_two_readers_share_a_file(db: Path) -> None:
    first, second = Warehouse(db), Warehouse(db)
    assert (first.sql("SELECT 1").value(), second.sql("SELECT 2").value()) == (1, 2)
    first.close()
    assert second.sql("SELECT 3").value() == 3


def test_a_writer_and_a_reader_take_turns(db: Path) -> None:
    """Whoever is idle lets go; nobody sees an old state, and the reader stays one that only reads."""
    reader, writer = Warehouse(db), Warehouse(db, writable=True)
    for n in range(1, 4):
        writer.sql(INSERT)
        assert reader.sql(COUNT).value() == n
    for refused in (INSERT, f"COPY (SELECT 1) TO '{db.parent}/out.csv'", "SELECT * FROM read_text('/etc/passwd')"):
        with pytest.raises(UsageError):
            reader.sql(refused).fetchall()
    assert writer.sql(COUNT).value() == 3


def test_the_command_line_writes_beside_an_open_reader(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = Warehouse(db)
    result = reader.sql("SELECT * FROM range(3)")
    assert main(["sql", "--write", "--db", str(db), INSERT]) == 0
    assert main(["sql", "--db", str(db), "--format", "csv", COUNT]) == 0
    assert capsys.readouterr().out.split() == ["count_star()", "1"]
    assert result.fetchall() == [(0,), (1,), (2,)]  # what it had asked for before
    assert reader.sql(COUNT).value() == 1


def test_what_would_be_lost_is_waited_for(db: Path) -> None:
    reader = Warehouse(db)
    reader.sql("CREATE TEMP TABLE mine AS SELECT 1 AS a")
    with pytest.raises(LockedError, match="at work in this process"):
        Warehouse(db, writable=True, wait_seconds=0.1)
    assert reader.sql("SELECT a FROM mine").value() == 1
    reader.close()
    with Warehouse(db, writable=True) as writer, writer.transaction():
        with pytest.raises(LockedError, match="at work in this process"):
            Warehouse(db, wait_seconds=0.1)
        writer.sql(INSERT)
    with Warehouse(db) as again:
        assert again.sql(COUNT).value() == 1


def test_a_link_is_the_same_file(db: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.duckdb"
    link.symlink_to(db)
    with Warehouse(db, writable=True) as first, Warehouse(link, writable=True) as second:
        first.sql(INSERT)
        assert second.sql(COUNT).value() == 1


def test_threads_share_a_file_and_an_object(db: Path) -> None:
    shared = Warehouse(db)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                with Warehouse(db) as own:
                    assert own.sql("SELECT $n", n=number).value() == number
                assert shared.sql("SELECT $n FROM range(3)", n=number).fetchall() == [(number,)] * 3
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_forgotten_warehouse_lets_go(db: Path) -> None:
    assert Warehouse(db).sql("SELECT 1").value() == 1  # its result keeps it while it is read
    assert str(db.resolve()) not in sharing._open


def test_a_closed_warehouse_says_so(db: Path) -> None:
    warehouse = Warehouse(db)
    result = warehouse.sql("SELECT * FROM range(3)")
    warehouse.close()
    with pytest.raises(UsageError, match="closed before its rows were fetched"):
        result.fetchall()
    with pytest.raises(UsageError, match="was closed"):
        warehouse.sql("SELECT 1")


# ------------------------------------------------------------------------------------------------ results


def test_results_hold_their_own_rows(db: Path) -> None:
    with Warehouse(db) as warehouse:
        first, second = warehouse.sql("SELECT 1 AS x"), warehouse.sql("SELECT 2 AS y")
        assert (first.fetchall(), first.columns) == ([(1,)], ["x"])
        assert second.pl().to_dict(as_series=False) == {"y": [2]}


def test_a_loop_that_queries_inside_ends_where_its_rows_end(db: Path) -> None:
    with Warehouse(db) as warehouse:
        rows, seen = warehouse.sql("SELECT i FROM range(5000) r(i)"), []
        while row := rows.fetchone():
            seen.append(row[0])
            if row[0] % 500 == 0:
                assert warehouse.sql("SELECT 2 * $i", i=row[0]).value() == 2 * row[0]
        assert seen == list(range(5000))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ["BIGINT", "HUGEINT", "FLOAT", "TIMESTAMP_NS", "VARCHAR"])
def test_accessors_may_follow_each_other(db: Path, kind: str, held: bool) -> None:
    value = "make_timestamp_ns(i)" if kind == "TIMESTAMP_NS" else f"i::{kind}"
    query = f"SELECT CASE WHEN i <> 2 THEN {value} END AS a FROM range(4) r(i)"
    with Warehouse(db) as warehouse:
        expected = warehouse.sql(query).fetchall()
        frame = warehouse.sql(query).pl()
        for order in (("value", "pl", "numpy", "rows"), ("numpy", "pl", "value", "rows"), ("pl", "rows")):
            result = warehouse.sql(query)
            if held:
                warehouse.sql("SELECT 1")
            for accessor in order:
                if accessor == "value":
                    assert result.value() == expected[0][0]
                elif accessor == "pl":
                    assert result.pl().equals(frame)
                elif accessor == "numpy":
                    array = result.numpy()["a"]
                    assert np.ma.getmaskarray(array).tolist() == [False, False, True, False]
                else:
                    assert [result.fetchone(), *result.fetchmany(2), *result.fetchall()] == expected
                    assert (result.fetchone(), result.fetchall(), result.value()) == (None, [], None)


@pytest.mark.parametrize("empty", ["", " ;", "-- nothing\n", "/* nothing */"])
def test_an_empty_statement_has_no_rows_of_the_one_before(db: Path, empty: str) -> None:
    with Warehouse(db) as warehouse:
        warehouse.sql("SELECT 7")
        with pytest.raises(UsageError, match="empty"):
            warehouse.sql(empty)


def test_parameters_may_be_numpys(db: Path) -> None:
    values = [
        (np.int64(3), 3), (np.uint8(3), 3), (np.float32(1.5), 1.5), (np.float16(2), 2.0), (np.bool_(True), True),
        (np.str_("a"), "a"), (np.arange(3), [0, 1, 2]), (np.timedelta64(3, "s"), datetime.timedelta(seconds=3)),
        (np.datetime64("2020-01-02"), datetime.date(2020, 1, 2)),
        (np.datetime64("2020-01-02T03:04:05.000006007"), datetime.datetime(2020, 1, 2, 3, 4, 5, 6)),
    ]  # fmt: skip
    with Warehouse(db) as warehouse:
        for given, expected in values:
            assert warehouse.sql("SELECT $x", x=given).value() == expected


@pytest.mark.parametrize("held", [False, True])
def test_dates_and_times_at_their_limits(db: Path, held: bool) -> None:
    """What Python has comes whole; what it has not is a sentence, and never another day."""
    known: dict[str, Any] = {
        "DATE '0001-01-01'": datetime.date.min,
        "DATE '9999-12-31'": datetime.date.max,
        "TIMESTAMP '0001-01-01'": datetime.datetime.min,
        "TIMESTAMP '9999-12-31 23:59:59.999999'": datetime.datetime.max,
        "TIME '23:59:59.999999'": datetime.time.max,
    }
    unknown = ["DATE 'infinity'", "DATE '10000-01-01'", "TIMESTAMP '-infinity'", "TIME '24:00:00'", "[DATE 'infinity']"]
    with Warehouse(db) as warehouse:
        for text in [*known, *unknown]:
            result = warehouse.sql(f"SELECT {text} AS d")
            if held:
                warehouse.sql("SELECT 1")
            if text in known:
                assert result.pl()["d"].to_list() == [known[text]]
                assert result.fetchall() == [(known[text],)]
            else:
                with pytest.raises(UsageError, match="cast it to VARCHAR"):
                    result.pl()


# ------------------------------------------------------------------------------------------------ names, settings


@pytest.mark.parametrize(
    "name", [":memory:", "md:x", "MD:x", "s3://a/b", "https://a/b", "sqlite:x", "~nouser/x", "a\nb"]
)
@pytest.mark.parametrize("command", [["tables"], ["runs"], ["migrate"], ["sql", "SELECT 1"], ["ingest", "."]])
def test_odd_names_are_a_sentence(
    name: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--db", name]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("elw: ")
    assert err.count("\n") == 1
    assert "Unexpected" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", [{"nosuch": "1"}, {"memory_limit": "abc"}, {"threads": 0}, {"memory_limit": None}])
def test_a_wrong_setting_is_named(db: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        Warehouse(db, config=setting)
    with Warehouse(db, config={"threads": 1}) as warehouse:
        assert warehouse.sql("SELECT current_setting('threads')").value() == 1


def test_a_query_spills_although_its_folder_cannot_take_it(db: Path) -> None:
    db.with_name(db.name + ".tmp").write_text("in the way")
    rows = "SELECT i, i::VARCHAR || repeat('y', 80) AS z FROM range(1_000_000) r(i) ORDER BY z OFFSET 10"
    query = f"SELECT count(z) FROM ({rows})"
    with Warehouse(db, config={"memory_limit": "60MB", "threads": "1"}) as warehouse:
        assert warehouse.sql(query).value() == 1_000_000 - 10


# ------------------------------------------------------------------------------------------------ full disk, Ctrl-C


@pytest.mark.parametrize("kilobytes", [0, 4, 12, 100, 300, 700, 1000])
def test_a_disk_that_is_full_while_a_file_is_made(kilobytes: int, tmp_path: Path) -> None:
    """One sentence, exit 1, nothing left over; with room the same command makes it."""
    code = """
import sys
from energy_lens.errors import ElwError
from energy_lens.warehouse.database import Warehouse
try:
    Warehouse(sys.argv[1], writable=True).close()
except ElwError as error:
    print(error.exit_code, error)
"""
    path = tmp_path / "elw.duckdb"

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, preexec_fn=limited, env=ENVIRONMENT
    )
    assert (done.stdout, done.stderr) == (
        "1 The disk is full; nothing was half-written: make room and run the command again.\n",
        "",
    )
    assert list(tmp_path.iterdir()) == []
    Warehouse(path, writable=True).close()


@pytest.mark.parametrize("kind", [duckdb.IOException, duckdb.TransactionException, duckdb.FatalException])
@pytest.mark.parametrize("reason", ["No space left on device", "Disk quota exceeded", "File too large"])
def test_a_full_disk_is_one_whatever_fails(kind: type[duckdb.Error], reason: str) -> None:
    with pytest.raises(ElwError, match="The disk is full") as caught, translated_errors():
        raise kind(f"Failed: could not write: {reason}")
    assert caught.value.exit_code == 1


def test_ctrl_c_while_a_frame_is_handed_over_is_one(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from energy_lens.warehouse import database

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(database._ArrowStream, "__arrow_c_stream__", interrupted)
    with Warehouse(db, writable=True) as warehouse:
        with pytest.raises(KeyboardInterrupt):
            warehouse.append("document_aliases", pl.DataFrame({"run_id": [1], "document_id": [1], "path": ["a"]}))
        assert warehouse.sql(COUNT).value() == 0


# ------------------------------------------------------------------------------------------------ runs


def rows_by_run(db: Path) -> dict[int, int]:
    """{run: rows that name it}, of all tables."""
    counts: dict[int, int] = {}
    with Warehouse(db) as warehouse:
        tables = [table for (table,) in warehouse.run("runs/tables").fetchall()]
        for table in tables:
            for run_id, n in warehouse.sql(f"SELECT run_id, count(*) FROM {table} GROUP BY ALL").fetchall():
                counts[run_id] = counts.get(run_id, 0) + n
    return counts


def test_a_deleted_run_leaves_nothing_and_its_id_is_not_given_again(
    options: IngestOptions, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = options.db
    ingest([corpus], options)
    ingest([corpus], replace(options, seed=1))
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("CREATE TABLE mine AS SELECT 2 AS run_id")
    assert main(["runs", "--db", str(db), "--delete", "2"]) == 0
    assert "Run 1 is current." in capsys.readouterr().err
    assert rows_by_run(db).keys() == {1, 2}
    with Warehouse(db, writable=True) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM mine").value() == 1  # it is the user's own
        warehouse.sql("DROP TABLE mine")
        assert warehouse.sql("SELECT count(*) FROM models").value() == 1
    assert rows_by_run(db).keys() == {1}
    assert main(["check", "--db", str(db)]) == 0
    assert ingest([corpus], replace(options, seed=1)).run_id == 3
    assert main(["runs", "--db", str(db), "--delete", "2"]) == 2
    assert main(["runs", "--db", str(db), "--delete", "1", "--use", "3"]) == 2
    for run_id in (1, 3):
        delete_run(db, run_id)
    assert rows_by_run(db) == {}
    with Warehouse(db, writable=True) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM models").value() == 0
        assert next_run_id(warehouse) == 4


def test_a_run_deleted_by_hand_is_inherited_by_nobody(
    options: IngestOptions, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ingest([corpus], options)
    with Warehouse(options.db, writable=True) as warehouse:
        warehouse.sql("DELETE FROM runs")
        warehouse.sql("DELETE FROM run_ids")  # as in a file of before that table
    capsys.readouterr()
    assert main(["runs", "--db", str(options.db)]) == 0
    assert "elw runs --delete 1 removes them" in capsys.readouterr().err
    second = ingest([corpus], options)
    assert (second.run_id, second.tokens) == (2, first.tokens)
    assert "elw runs --delete 1 removes them" in capsys.readouterr().err
    assert main(["runs", "--db", str(options.db), "--delete", "1"]) == 0
    assert rows_by_run(options.db).keys() == {2}
    assert main(["check", "--db", str(options.db)]) == 0


def test_a_file_without_runs_says_so(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--db", str(db)]) == 0
    assert "There is no run" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["nothing", "an empty warehouse", "another run of that id"])
def test_a_warehouse_that_goes_away_while_its_ingest_runs(
    by: str, options: IngestOptions, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next commit says so; nothing is made or written where the file was."""
    other = tmp_path / "other.duckdb"
    if by == "an empty warehouse":
        Warehouse(other, writable=True).close()
    elif by == "another run of that id":
        ingest([corpus], replace(options, db=other, seed=1))
    before = rows_by_run(other) if other.exists() else {}
    original = commits.open_again

    def opened(db: Path, *rest: Any) -> Warehouse:
        if db.exists() and not (tmp_path / "away").exists():
            db.rename(tmp_path / "away")
            if other.exists():
                other.rename(db)
        return original(db, *rest)

    monkeypatch.setattr(commits, "open_again", opened)
    with pytest.raises(WarehouseError, match="removed or replaced while its ingest was under way"):
        ingest([corpus], options)
    assert options.db.exists() == (by != "nothing")
    assert (rows_by_run(options.db) if options.db.exists() else {}) == before


def test_an_ingest_that_stops_before_its_first_group_is_not_current(
    options: IngestOptions, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest([corpus], options)
    current = "SELECT run_id FROM runs WHERE is_current"

    def stop(*_: object, **__: object) -> None:
        raise ElwError("stopped")

    other = replace(options, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "process", stop)
        with pytest.raises(ElwError, match="stopped"):
            ingest([corpus], other)
    with Warehouse(options.db) as warehouse:
        assert warehouse.sql(current).fetchall() == [(1,)]
        assert warehouse.sql("SELECT count(*) > 0 FROM efas").value()
    summary = ingest([corpus], other)
    assert any("Run 1 stays" in note for note in summary.notes)
    with Warehouse(options.db) as warehouse:
        assert warehouse.sql(current).fetchall() == [(summary.run_id,)]


# ------------------------------------------------------------------------------------------------ views


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ("DROP VIEW efas_all", "efas_all"),
        ("CREATE OR REPLACE VIEW current_run AS SELECT 1 AS a", "current_run"),
        ("CREATE OR REPLACE MACRO entropy_bits(a) AS a", "entropy_bits"),
    ],
)
def test_changed_views_are_made_anew(spoil: str, named: str, db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def definitions() -> dict[str, list[str]]:
        with Warehouse(db) as warehouse:
            rows = warehouse.run("queries/definitions").fetchall()
        return {name: sorted(text.split()) for name, text in rows}

    before = definitions()
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql(spoil)
    assert definitions() != before
    assert main(["migrate", "--db", str(db)]) == 0
    assert f"gone or changed: {named}" in capsys.readouterr().err
    assert definitions().keys() == before.keys()
    assert definitions()[named] == before[named]
    assert main(["migrate", "--db", str(db)]) == 0
    assert "Made anew" not in capsys.readouterr().err


def test_a_table_in_a_views_place_is_named(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("DROP VIEW null_control")
        warehouse.sql("CREATE TABLE null_control (a INTEGER)")
    assert main(["migrate", "--db", str(db)]) == 3
    assert "null_control" in capsys.readouterr().err
