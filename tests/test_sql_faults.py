"""`elw sql` on its way in: texts that begin with a dash, and what is refused and what is not."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.warehouse.database import Warehouse


@pytest.fixture
def db(empty_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A warehouse, the one that commands mean, alone in the current folder."""
    path = Path(shutil.copy(empty_warehouse, tmp_path))
    monkeypatch.setenv("ELW_WAREHOUSE", str(path))
    monkeypatch.chdir(tmp_path)
    return path


# ------------------------------------------------------------------------------------------------ a leading dash


@pytest.mark.parametrize(
    "words",
    [
        ["-- a comment\nSELECT 42 AS a"],
        ["--comment\nSELECT 42 AS a"],
        ["--format is no option here\nSELECT 42 AS a"],
        ["--\nSELECT 42 AS a"],
        ["\ufeff-- a comment\nSELECT 42 AS a"],
        ["--", "-- a comment\nSELECT 42 AS a"],
        ["-- a comment\nSELECT $b AS a", "-p", "b=42"],
        ["-p", "b=42", "--rows", "0", "-- a comment\nSELECT $b AS a", "--write"],
        ["-o", "-", "-- a comment\nSELECT 42 AS a"],
        ["/* a comment */ SELECT 42 AS a"],
    ],
)
def test_a_query_may_begin_with_a_comment(db: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", "--format", "jsonl", *words]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"a": 42}, "")


def test_a_value_of_an_option_is_no_query(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", "SELECT $a AS a", "-f", "jsonl", "--parameter", "a=-- x\ny"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a": "-- x\ny"}
    assert main(["sql", "SELECT $a AS a", "-f", "jsonl", "--parameter=a=-- x y"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a": "-- x y"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-1"], 'syntax error at or near "-"'),  # what SQL says of it, not the command line
        (["-(1)"], 'syntax error at or near "-"'),
        (["-- only a comment"], "nothing but comments"),
        (["--nonsense"], "No such option"),
        (["-x"], "No such option"),
        (["SELECT 1", "-- SELECT 2"], "unexpected extra argument"),
    ],
)
def test_what_is_no_query_is_told_as_such(
    db: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sql", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert err.count("\n") == 1


def test_a_lone_dash_is_stdin_and_stdout(
    db: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("-- a file\nSELECT 42 AS a"))
    assert main(["sql", "-", "-o", "-", "-f", "csv"]) == 0
    assert capsys.readouterr().out == "a\n42\n"
    assert main(["sql", "SELECT 1", "-o", "-", "-f", "parquet"]) == 2
    assert main(["sql", "SELECT 42 AS a", "-o", "./-", "-f", "csv"]) == 0
    assert (db.parent / "-").read_text() == "a\n42\n"


@pytest.mark.parametrize(
    "words",
    [["sql", "SELECT 1", "-o", ""], ["sql", "SELECT 1", "--db", ""], ["report", "-o", ""], ["ingest", ""],
     ["ingest", "x", "--train-on", ""], ["ingest", "x", "--sae", ""], ["lens", "train", "x", "-o", ""]],
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(
    db: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "empty" in capsys.readouterr().err
    assert [path.name for path in db.parent.iterdir()] == [db.name]


# ------------------------------------------------------------------------------------------------ what is refused


def run_script(warehouse: Warehouse, script: str) -> None:
    for statement in warehouse.statements(script):
        warehouse.sql(statement.text)


@pytest.mark.parametrize(
    "query",
    [
        "EXPLAIN SELECT path FROM documents WHERE path LIKE '%load%'",
        "EXPLAIN ANALYZE SELECT 'COPY x TO y' AS a",
        "EXPLAIN (FORMAT json) SELECT 'attach'",
        "EXPLAIN (SELECT 'export')",
        "EXPLAIN /* copy */ SELECT 1 -- import",
        'EXPLAIN SELECT 1 AS "load"',
        "EXPLAIN SELECT load FROM (SELECT 1 AS load)",
        "PREPARE copy AS SELECT 'load'",
        "PRAGMA table_info('runs')",
        "SELECT 'COPY' AS copy",
        "EXPLAIN PIVOT (VALUES ('copy', 2)) t(load, b) ON load USING sum(b)",
    ],
)
def test_words_in_literals_names_and_comments_are_no_reason_to_refuse(db: Path, query: str) -> None:
    with Warehouse(db) as warehouse:
        warehouse.sql(query)


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("target", ["elw.duckdb", "elw.duckdb.wal", "new.csv"])
@pytest.mark.parametrize(
    "query",
    [
        "COPY runs TO '{}'",
        "/* c */ COPY (SELECT 1) TO '{}' (FORMAT csv)",
        ";; COPY runs TO '{}'",
        "SELECT 1; COPY runs TO '{}'",
        "EXPLAIN ANALYZE COPY runs TO '{}'",
        "EXPLAIN (ANALYZE) COPY runs TO '{}'",
        "EXPLAIN -- analyse\n ANALYZE /* ( */ COPY runs TO '{}'",
        "PREPARE \"a (b\" AS COPY runs TO '{}'",
        "COPY (PIVOT (VALUES (1, 2)) t(a, b) ON a USING sum(b)) TO '{}'",
        "EXPLAIN ANALYZE COPY (PIVOT (VALUES (1, 2)) t(a, b) ON a USING sum(b)) TO '{}'",
        "WITH x AS (COPY (SELECT 1) TO '{}') SELECT 1",
        "EXPORT DATABASE '{}'",
        "IMPORT DATABASE '{}'",
        "PRAGMA import_database('{}')",
        "ATTACH '{}' AS other",
        "COPY FROM DATABASE elw TO '{}'",
        "LOAD '{}'",
        "FORCE INSTALL '{}'",
        "SELECT * FROM read_csv('/etc/hostname') -- {}",
        "SELECT * FROM 'https://localhost/{}'",
    ],
)
def test_whatever_reaches_files_is_refused(db: Path, query: str, target: str, writable: bool) -> None:
    before = db.read_bytes()
    with Warehouse(db, writable=writable, restricted=True) as warehouse, pytest.raises(UsageError):
        run_script(warehouse, query.format(target))
    assert db.read_bytes() == before
    assert [path.name for path in db.parent.iterdir()] == [db.name]
