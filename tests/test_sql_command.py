"""`elw sql`, `tables`, `describe`, `runs` and `migrate`: what a user types, what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import energy_lens
from energy_lens.cli.main import main
from energy_lens.warehouse import database, migrations
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.parameters import parse_parameters

PACKAGE_PARENT = Path(energy_lens.__file__).parent / ".types"
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{PACKAGE_PARENT}:{os.environ.get('PYTHONPATH', '')}"}

RUN = """
INSERT INTO runs BY NAME SELECT
    $run_id AS run_id, 'identity' AS identity, $current AS is_current, $model AS model, 'aa' AS model_sha256,
    TIMESTAMP '2026-01-02 03:04:05.678' AS created_at, TIMESTAMP '2026-01-02 03:04:05' AS updated_at,
    'bb' AS tokenizer_sha256, 512 AS vocabulary_size, 4 AS n_layers, 32 AS d_model, 128 AS context_length,
    4 AS segment_contexts, [1, 2] AS layers, ['nll', 'hopfield'] AS energies, 'float32' AS dtype, 0 AS seed,
    false AS store_gradients, '{}' AS settings, '0.1.0' AS elw_version, 1 AS stats_groups, 1000 AS stats_tokens
"""
GROUPS = """
INSERT INTO plan_groups VALUES
    (1, 0, 'code', 'A', 8, 1000, TIMESTAMP '2026-01-02 03:04:05', NULL), (1, 1, 'code', 'B', 8, 900, NULL, NULL)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "elw.duckdb"
    with Warehouse(path, writable=True) as warehouse:
        warehouse.sql(RUN, run_id=1, current=True, model="first")
        warehouse.sql(RUN, run_id=2, current=False, model="second")
        warehouse.sql(GROUPS)
        warehouse.sql("INSERT INTO tokens SELECT 1, i, i % 128, i, 'token ' || i, NULL FROM range(3000) r(i)")
    return path


@pytest.fixture
def db(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A warehouse with two runs and 3,000 tokens, the one that commands mean."""
    path = Path(shutil.copy(template, tmp_path))
    monkeypatch.setenv("ELW_WAREHOUSE", str(path))
    return path


class Elw:
    """Runs a command line; out and err hold what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str | Path) -> int:
        code = main([str(word) for word in words])
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *words: str | Path) -> list[dict[str, object]]:
        assert self(*words, "--format", "jsonl") == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]

    def fails(self, code: int, *words: str | Path) -> str:
        """The sentence with which a command fails: alone on stderr, nothing on stdout."""
        assert self(*words) == code
        assert self.out == ""
        assert self.err.startswith("elw: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("elw: ").strip()


@pytest.fixture
def elw(capsys: pytest.CaptureFixture[str]) -> Elw:
    return Elw(capsys)


def send(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put text on stdin."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


# ------------------------------------------------------------------------------------------------ queries


def test_query_from_argument_stdin_and_dash(db: Path, elw: Elw, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [{"answer": 42}]
    assert elw.json("sql", "SELECT 42 AS answer") == expected
    send(monkeypatch, "-- a file\nSELECT 42 AS answer;\n-- the end\n")
    assert elw.json("sql") == expected
    send(monkeypatch, "SELECT 42 AS answer")
    assert elw.json("sql", "-") == expected


def test_db_option_beats_environment_beats_this_folder(
    db: Path, elw: Elw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = "SELECT count(*) AS n FROM runs"
    other = tmp_path / "other.duckdb"
    Warehouse(other, writable=True).close()
    assert elw.json("sql", query) == [{"n": 2}]
    assert elw.json("sql", query, "--db", other) == [{"n": 0}]
    monkeypatch.delenv("ELW_WAREHOUSE")
    monkeypatch.chdir(tmp_path)
    assert elw.json("sql", query) == [{"n": 2}]


@pytest.mark.parametrize("query", ["", "  \n", "-- only a comment", ";"])
def test_no_query_is_a_usage_error(db: Path, elw: Elw, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    send(monkeypatch, query)
    assert "query" in elw.fails(2, "sql", "-").lower()


def test_query_that_is_not_text_is_a_usage_error(db: Path, elw: Elw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"SELECT '\xff'"), encoding="utf-8"))
    assert "not UTF-8" in elw.fails(2, "sql")
    assert "not UTF-8" in elw.fails(2, "sql", "SELECT '\udcff'")
    assert "not UTF-8" in elw.fails(2, "sql", "SELECT $a", "-p", "a=\udcff")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("15", 15),
        ("-3", -3),
        ("99999999999999999999999", 99999999999999999999999),
        ("1.5", 1.5),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("word", "word"),
        ("two words", "two words"),
        ("", ""),
        ("a=b", "a=b"),
        ("nan", "nan"),
        ("0x10", "0x10"),
        ("١٢", "١٢"),
        ("'42'", "42"),
        ("'it''s'", "it's"),
        ("'", "'"),
        ("it's", "it's"),
    ],
)
def test_parameter_values_are_typed(db: Path, elw: Elw, text: str, value: object) -> None:
    assert parse_parameters([f"a={text}"]) == {"a": value}
    assert elw.json("sql", "SELECT $a AS a", "-p", f"a={text}") == [{"a": value}]


def test_parameters_reach_every_statement_that_names_them(db: Path, elw: Elw) -> None:
    script = "CREATE TEMP TABLE t AS SELECT $a AS a; SELECT a + $b AS c FROM t"
    assert elw.json("sql", script, "-p", "a=1", "-p", "b=2") == [{"c": 3}]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["SELECT $a"], "a"),
        (["SELECT 1", "-p", "a=1"], "no parameter $a"),
        (["SELECT $a", "-p", "a"], "not name=value"),
        (["SELECT $a", "-p", "=1"], "not name=value"),
        (["SELECT $a", "-p", "a=1", "-p", "a=2"], "twice"),
        (["SELECT ?"], "-p name=value"),
    ],
)
def test_wrong_parameters_are_usage_errors(db: Path, elw: Elw, words: list[str], reason: str) -> None:
    assert reason in elw.fails(2, "sql", *words)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT * FROM efaz", "efaz does not exist"),
        ("SELECT scor FROM efas", "scor"),
        ("SELECT 'a'::INTEGER", "Could not convert string 'a' to INT32"),
        ("SELECT 1; SELECT nothing", "nothing"),
        ("DELETE FROM runs", "add --write"),
        ("COPY runs TO '/tmp/elw-never.csv'", "--output"),
        ("SELECT * FROM read_csv('/etc/passwd')", "--output"),
        ("SET threads = 1", "changes no settings"),
        ("INSTALL httpfs", "refused"),
    ],
)
def test_wrong_query_is_one_sentence_and_exit_code_2(db: Path, elw: Elw, query: str, reason: str) -> None:
    before = db.read_bytes()
    sentence = elw.fails(2, "sql", query)
    assert reason in sentence
    assert "LINE 1" not in sentence
    assert db.read_bytes() == before


def test_error_in_the_middle_of_the_rows_is_reported(db: Path, elw: Elw, tmp_path: Path) -> None:
    query = "SELECT CASE WHEN i = 900_000 THEN error('too far') ELSE i END AS i FROM range(1_000_000) r(i)"
    assert elw("sql", query, "--format", "csv") == 2
    assert "too far" in elw.err
    target = tmp_path / "out.jsonl"
    target.write_text("as it was")
    assert "too far" in elw.fails(2, "sql", query, "--output", target)
    assert target.read_text() == "as it was"


def test_script_runs_whole_and_shows_its_last_result(db: Path, elw: Elw) -> None:
    assert elw.json("sql", "SELECT 1 AS a; SELECT 2 AS b; -- end") == [{"b": 2}]
    pivot = "SELECT 1; PIVOT (VALUES (1, 2), (2, 3)) t(a, b) ON a USING sum(b)"
    assert elw.json("sql", pivot) == [{"1": 2, "2": 3}]
    assert elw.json("sql", "SET VARIABLE a = 5; SELECT getvariable('a') AS b") == [{"b": 5}]


@pytest.mark.parametrize(
    "query",
    [
        "DESCRIBE runs",
        "SHOW TABLES",
        "SUMMARIZE plan_groups",
        "PRAGMA table_info('runs')",
        "PIVOT (VALUES (1, 2), (2, 3)) t(a, b) ON a USING sum(b)",
        "VALUES (1), (2)",
        "FROM runs",
        "TABLE runs",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "CALL pragma_version()",
        "EXPLAIN SELECT 1",
    ],
)
@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl", "markdown"])
def test_every_kind_of_query_has_rows_in_every_format(db: Path, elw: Elw, query: str, form: str) -> None:
    assert elw("sql", query, "--format", form, "--rows", "0") == 0
    assert len(elw.out.splitlines()) > 1 or form == "jsonl"
    assert elw.err == ""


def test_explained_plan_is_drawn_as_it_is(db: Path, elw: Elw) -> None:
    assert elw("sql", "EXPLAIN SELECT * FROM runs") == 0
    assert "runs" in elw.out
    assert "\\n" not in elw.out


def test_order_of_the_query_is_kept(db: Path, elw: Elw) -> None:
    query = "SELECT token_id FROM tokens, range(20) ORDER BY token_id DESC"
    for form in ("csv", "jsonl"):
        assert elw("sql", query, "--format", form) == 0
        digits = [
            int("".join(filter(str.isdigit, line))) for line in elw.out.splitlines() if any(map(str.isdigit, line))
        ]
        assert digits == sorted(digits, reverse=True)
        assert len(digits) == 60_000


# ------------------------------------------------------------------------------------------------ writing


def test_write_changes_the_warehouse_and_says_how_much(db: Path, elw: Elw) -> None:
    assert elw("sql", "CREATE TABLE mine (a INTEGER)", "--write") == 0
    assert (elw.out, elw.err) == ("", "Done.\n")
    assert elw("sql", "INSERT INTO mine VALUES (1), (2)", "--write") == 0
    assert (elw.out, elw.err) == ("", "2 rows changed.\n")
    assert elw("sql", "DELETE FROM mine WHERE a = 1", "--write") == 0
    assert (elw.out, elw.err) == ("", "1 row changed.\n")
    assert elw.json("sql", "INSERT INTO mine VALUES (3) RETURNING a", "--write") == [{"a": 3}]
    assert elw.json("sql", "SELECT * FROM mine") == [{"a": 2}, {"a": 3}]


def test_statements_commit_one_by_one_unless_the_script_says_otherwise(db: Path, elw: Elw) -> None:
    count = ["sql", "SELECT count(*) AS n FROM document_aliases"]
    insert = "INSERT INTO document_aliases VALUES (1, 1, 'a')"
    elw.fails(2, "sql", f"{insert}; SELECT * FROM nowhere", "--write")
    assert elw.json(*count) == [{"n": 1}]
    elw.fails(2, "sql", f"BEGIN; {insert}; SELECT * FROM nowhere; COMMIT", "--write")
    assert elw.json(*count) == [{"n": 1}]
    assert elw("sql", f"BEGIN; {insert}", "--write") == 0
    assert "COMMIT" in elw.err
    assert elw.json(*count) == [{"n": 1}]
    assert elw("sql", f"BEGIN; {insert}; COMMIT", "--write") == 0
    assert elw.json(*count) == [{"n": 2}]


def test_write_makes_no_new_file(elw: Elw, tmp_path: Path) -> None:
    assert "There is no warehouse" in elw.fails(3, "sql", "SELECT 1", "--write", "--db", tmp_path / "new.duckdb")
    assert list(tmp_path.iterdir()) == []


def test_write_reaches_no_files(db: Path, elw: Elw, tmp_path: Path) -> None:
    assert "refused" in elw.fails(2, "sql", f"COPY runs TO '{tmp_path / 'out.csv'}'", "--write")
    assert not (tmp_path / "out.csv").exists()


# ------------------------------------------------------------------------------------------------ the warehouse's state


def test_statistics_that_lag_are_announced(db: Path, elw: Elw) -> None:
    assert elw("sql", "SELECT 1") == 0
    assert elw.err == ""
    assert elw("sql", "UPDATE plan_groups SET committed_at = TIMESTAMP '2026-01-02' WHERE group_id = 1", "--write") == 0
    for words in (["sql", "SELECT 1"], ["tables"], ["runs"]):
        assert elw(*words) == 0
        assert elw.err.startswith("The statistics of run 1 cover 1,000 of its 1,900 tokens")
        assert elw.err.count("\n") == 1


def test_older_file_is_read_announced_and_migrated(db: Path, elw: Elw, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it will be when this version's only migration is one of several."""
    later = tuple(migrations.migration_files())
    extra = db.parent / "0099_extra.sql"
    extra.write_text("CREATE TABLE extra (a INTEGER);")
    monkeypatch.setattr(migrations, "migration_files", lambda: [*later, (99, extra)])
    assert elw("sql", "SELECT 1") == 0
    assert elw.err == "This warehouse was made by an older version and lacks some tables or views: run elw migrate.\n"
    assert elw("migrate") == 0
    assert "is now at schema 99" in elw.err
    assert elw.json("sql", "SELECT count(*) AS n FROM extra") == [{"n": 0}]
    assert elw.err == ""


def test_migrate_says_what_it_did(db: Path, elw: Elw, tmp_path: Path) -> None:
    assert elw("migrate") == 0
    assert "was and is at schema" in elw.err
    assert elw.out == ""
    assert "There is no warehouse" in elw.fails(3, "migrate", "--db", tmp_path / "new.duckdb")
    assert not (tmp_path / "new.duckdb").exists()


@pytest.mark.parametrize("words", [["sql", "SELECT 1"], ["tables"], ["describe", "runs"], ["runs"], ["migrate"]])
def test_file_that_is_no_warehouse_is_exit_code_3(elw: Elw, tmp_path: Path, words: list[str]) -> None:
    spoilt = tmp_path / "spoilt.duckdb"
    spoilt.write_bytes(b"no database" * 100)
    for path in (spoilt, tmp_path / "missing.duckdb", tmp_path):
        assert str(path) in elw.fails(3, *words, "--db", path)


def test_file_held_by_another_process_is_exit_code_3(db: Path, elw: Elw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "READER_WAIT_SECONDS", 0.2)
    code = "import sys, energy_lens; w = energy_lens.Warehouse(sys.argv[1], writable=True); print(); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(db)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=ENVIRONMENT) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert f"(process {holder.pid})" in elw.fails(3, "sql", "SELECT 1")
        holder.communicate()


# ------------------------------------------------------------------------------------------------ listings


def test_tables_lists_tables_views_and_macros_with_comments(db: Path, elw: Elw) -> None:
    rows = {str(row["name"]): row for row in elw.json("tables")}
    assert rows["tokens"]["rows"] == 3000
    assert rows["runs"]["kind"] == "table"
    assert rows["efas"]["kind"] == "view"
    assert rows["efas"]["rows"] is None
    assert rows["top_examples"]["kind"] == "macro"
    assert all(row["comment"] for row in rows.values())


def test_describe_shows_columns_types_and_comments(db: Path, elw: Elw) -> None:
    rows = {row["column"]: row for row in elw.json("describe", "EFAS")}
    assert rows["score"]["type"] == "DOUBLE"
    assert rows["score"]["comment"]
    assert elw.err.startswith("efas (view): ")
    table = elw.json("describe", "tokens")
    assert [row["column"] for row in table][:2] == ["run_id", "token_id"]
    macro = elw.json("describe", "top_examples")
    assert len(macro) == 1
    assert str(macro[0]["parameters"]).count(",") == 2
    assert "SELECT" in str(macro[0]["definition"])


def test_unknown_name_gets_close_matches(db: Path, elw: Elw) -> None:
    assert "did you mean efas" in elw.fails(2, "describe", "efaz")
    assert "elw tables" in elw.fails(2, "describe", "xqzw")


def test_runs_are_listed_and_chosen(db: Path, elw: Elw) -> None:
    first, second = elw.json("runs")
    assert first == {
        "run_id": 1, "current": True, "model": "first", "layers": "1,2", "energies": "nll,hopfield", "dtype": "float32",
        "seed": 0, "tokens": 1000, "planned_tokens": 1900, "stats_tokens": 1000, "created_at": "2026-01-02T03:04:05",
    }  # fmt: skip
    assert (second["current"], second["tokens"], second["planned_tokens"]) == (False, 0, 0)
    assert elw("runs", "--use", "2") == 0
    assert (elw.out, elw.err) == ("", f"Run 2 of {db} is current now.\n")
    assert [row["current"] for row in elw.json("runs")] == [False, True]


def test_unknown_run_is_refused_and_changes_nothing(db: Path, elw: Elw, tmp_path: Path) -> None:
    assert "it has 1, 2" in elw.fails(2, "runs", "--use", "7")
    assert [row["current"] for row in elw.json("runs")] == [True, False]
    empty = tmp_path / "empty.duckdb"
    Warehouse(empty, writable=True).close()
    assert elw.json("runs", "--db", empty) == []
    assert "none yet" in elw.fails(2, "runs", "--use", "1", "--db", empty)
