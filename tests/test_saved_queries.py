"""Queries by name: those of the package run, a user's own go first, and parameters are what their comments say."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.sql import FOLDER
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.parameters import declared, parse_parameters, with_defaults
from energy_lens.warehouse.saved_queries import find, saved_queries

#: Values of the parameters that the package's queries ask for.
GIVEN = {"layer": "1", "feature": "3", "text": "a"}

OWN = """-- What does it say?
--
-- $n: a number (INTEGER, default 7)
-- $text: any text (VARCHAR)
SELECT $n AS n, $text AS text
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "elw.duckdb"
    Warehouse(path, writable=True).close()
    return path


@pytest.fixture
def own(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own queries, and an empty warehouse that commands mean."""
    folder = tmp_path / "queries"
    folder.mkdir()
    (folder / "said.sql").write_text(OWN)
    monkeypatch.setenv("ELW_QUERIES", str(folder))
    monkeypatch.setenv("ELW_WAREHOUSE", str(shutil.copy(template, tmp_path)))
    return folder


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert main(["sql", *words, "--format", "json"]) == 0, capsys.readouterr().err
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


# ------------------------------------------------------------------------------------------------ the package's


def packaged() -> list[str]:
    return [query.name for query in saved_queries() if not query.is_own]


@pytest.mark.parametrize("name", packaged())
def test_every_query_of_the_package_runs(name: str, tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With defaults, and with each value that it asks for; its parameters are those that its SQL has."""
    script = find(name).script
    known = declared(script)
    given = [word for key, value in GIVEN.items() if key in known for word in ("-p", f"{key}={value}")]
    assert main(["sql", "--db", str(tiny_warehouse), f"@{name}", *given, "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") >= 1
    with Warehouse(tiny_warehouse) as warehouse:
        (statement,) = warehouse.statements(script)
    assert statement.parameters == set(known)
    assert all(parameter.meaning for parameter in known.values())
    assert find(name).answers


def test_those_that_answer_rows_have_some(tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("halves", "null_control", "surprising_tokens", "mutual_information"):
        assert answer([f"@{name}", "--db", str(tiny_warehouse)], capsys), name


def test_rows_are_those_of_the_same_sql(tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        expected = warehouse.sql(
            "SELECT token_id + 1, value FROM energies WHERE energy = 'nll' ORDER BY value DESC LIMIT 3"
        ).fetchall()
    rows = answer(["@surprising_tokens", "-p", "n=3", "--db", str(tiny_warehouse)], capsys)
    assert [row["nll"] for row in rows] == pytest.approx([value for _, value in expected])


def test_a_piped_query_has_its_defaults(
    tiny_warehouse: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """elw sql < sql/queries/top_nll.sql goes on working, and says what @top_nll says."""
    text = (FOLDER / "queries" / "top_nll.sql").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    piped = answer(["--db", str(tiny_warehouse)], capsys)
    assert piped == answer(["@top_nll", "--db", str(tiny_warehouse)], capsys)


def test_the_programs_own_statements_are_not_offered() -> None:
    assert {"use_run", "catalogue", "names"}.isdisjoint(packaged())
    assert "top_nll" in packaged()


# ------------------------------------------------------------------------------------------------ the user's


def test_a_users_query_is_run_and_listed_first(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["@said", "-p", "text=42"], capsys) == [{"n": 7, "text": "42"}]
    assert main(["sql", "--list", "--format", "json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first == {
        "query": "@said", "answers": "What does it say?", "parameters": "$n = 7: a number; $text: any text",
        "from": str(own / "said.sql"),
    }  # fmt: skip


def test_a_users_name_goes_before_the_packages(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "top_nll.sql").write_text("SELECT 'mine' AS whose")
    assert answer(["@top_nll"], capsys) == [{"whose": "mine"}]
    assert [query.name for query in saved_queries()].count("top_nll") == 1


def test_a_value_is_asked_for_and_looked_at(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        ([], "needs a value of $text, any text: give it with -p text=…"),
        (["-p", "text=a", "-p", "n=1.5"], "-p n is '1.5'; an integer is needed: a number."),
        (["-p", "text=a", "-p", "n=true"], "an integer is needed"),
        (["-p", "text=a", "-p", "txt=b"], "no parameter $txt (did you mean text?)"),
    ):
        assert main(["sql", "@said", *words]) == 2
        assert sentence in capsys.readouterr().err


def test_a_user_reads_and_no_more(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "wipe.sql").write_text("DELETE FROM runs")
    assert main(["sql", "@wipe"]) == 2
    assert "--write" in capsys.readouterr().err


def test_broken_files_hide_nothing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "broken.sql").write_bytes(b"\xff\xfe SELECT")
    (own / "escape.sql").write_text("-- \x1b[31mred\nSELECT 1")
    (own / "empty.sql").write_text("")
    (own / "folder.sql").mkdir()
    assert main(["sql", "--list"]) == 0
    out = capsys.readouterr().out
    assert "@broken" in out
    assert "@top_nll" in out
    assert "\x1b" not in out
    assert main(["sql", "@broken"]) == 2
    assert "not UTF-8 text" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELW_QUERIES", str(tmp_path / "none"))
    assert main(["sql", "--list"]) == 2
    assert "ELW_QUERIES" in capsys.readouterr().err
    monkeypatch.delenv("ELW_QUERIES")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # nobody has to make it
    assert main(["sql", "--list"]) == 0


def test_names_lead_nowhere_else(own: Path) -> None:
    for name in ("../said", "/etc/passwd", "said.sql", "", "@", "use_run", "\x00"):
        with pytest.raises(UsageError):
            find(name)


# ------------------------------------------------------------------------------------------------ parameters


def test_declarations_stand_at_the_head_alone() -> None:
    head = "-- $a: first (INTEGER, default -3)\n-- $b: (of b) second (VARCHAR, default 'it''s (x)')\n"
    script = head + "SELECT 1\n-- $c: no (INTEGER)"
    found = declared(script)
    assert {name: each.default for name, each in found.items()} == {"a": -3, "b": "it's (x)"}
    assert with_defaults(script, {"a": 5}) == {"a": 5, "b": "it's (x)"}


@given(st.text())
def test_a_text_is_taken_as_it_is(text: str) -> None:
    known = declared("-- $t: any (VARCHAR)")
    quoted = "'" + text.replace("'", "''") + "'"
    assert parse_parameters([f"t={quoted}"], known) == {"t": text}
    if text.lower() != "null" and not (len(text) > 1 and text[0] == text[-1] == "'"):
        assert parse_parameters([f"t={text}"], known) == {"t": text}


@given(st.text())
def test_any_comment_is_read(text: str) -> None:
    declared(f"-- {text}\nSELECT 1")
