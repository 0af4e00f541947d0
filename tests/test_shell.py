"""`elw sql` on a terminal: lines typed, what comes of them, and what never ends the shell."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import energy_lens
from energy_lens.cli.main import main
from energy_lens.cli.shell.completing import ShellCompleter
from energy_lens.cli.shell.run import history_file, run_shell
from energy_lens.cli.shell.session import WORDS, Session
from energy_lens.errors import ElwError
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.query import Query
from energy_lens.warehouse.typing_aid import is_whole

PACKAGE_PARENT = Path(energy_lens.__file__).parent / ".types"
ENTER, CTRL_C, CTRL_D, UP = "\r", "\x03", "\x04", "\x1b[A"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shell") / "elw.duckdb"
    Warehouse(path, writable=True).close()
    return path


@pytest.fixture
def db(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty warehouse; state and configuration folders of its own."""
    path = Path(shutil.copy(template, tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ELW_QUERIES", raising=False)
    return path


def typed(db: Path, keys: str, query: Query | None = None) -> None:
    """Run the shell on keys as a terminal would send them."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        run_shell(db, query or Query(""))


# ------------------------------------------------------------------------------------------------ lines


def test_a_query_of_several_lines_is_answered(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed(db, f".format csv{ENTER}SELECT 1 AS a,{ENTER}';' AS b{ENTER};{ENTER}{CTRL_D}")
    out, err = capsys.readouterr()
    assert out == "a,b\n1,;\n"
    assert "read-only" in err


def test_errors_are_sentences_and_the_shell_goes_on(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["SELCT 1;", "SELECT * FROM efass;", ".describ efas", ".format jso", ".rows x", ".digits 99", "@top_nl",
             "@fires_on layer=x", ".read nowhere.sql", ".set x", ".tables zzz", "DELETE FROM runs;", ".set a='",
             "COPY runs TO 'x';", ".describe"]  # fmt: skip
    typed(db, "".join(f"{line}{ENTER}" for line in lines) + f".format csv{ENTER}SELECT 42 AS last;{ENTER}.quit{ENTER}")
    out, err = capsys.readouterr()
    assert out == "last\n42\n"
    sentences = [line for line in err.splitlines() if line.startswith("elw: ")]
    assert len(sentences) == len(lines)
    for hint in ("SELECT?", '"efas"', ".describe?", "json", "@top_nll?"):
        assert hint in err
    assert "--write" in err


def test_ctrl_c_drops_a_line_and_nothing_more(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed(db, f"SELECT 'never{CTRL_C}.format csv{ENTER}SELECT 2 AS b;{ENTER}{CTRL_D}")
    assert capsys.readouterr().out == "b\n2\n"


def test_saved_queries_and_parameters(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [".format jsonl", ".set layer=20 text='a b'", "SELECT $layer AS l, $text AS t;", "SELECT 1 AS one;",
             "@null_control category=code", "@top_nll;"]  # fmt: skip
    typed(db, "".join(f"{line}{ENTER}" for line in lines) + CTRL_D)
    out, err = capsys.readouterr()
    assert out == '{"l":20,"t":"a b"}\n{"one":1}\n'
    assert "elw: " not in err


def test_a_file_is_read(db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "query.sql").write_text("-- $n: a number (INTEGER, default 3)\nSELECT $n AS n")
    typed(db, f".format csv{ENTER}.read {tmp_path / 'query.sql'}{ENTER}{CTRL_D}")
    assert capsys.readouterr().out == "n\n3\n"


def test_help_names_every_word(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed(db, f".help{ENTER}.queries{ENTER}.tables efas{ENTER}.describe efas{ENTER}{CTRL_D}")
    out, err = capsys.readouterr()
    assert all(word in err for word in WORDS)
    assert "efas_halves" in out
    assert "@top_nll" in out
    assert "q_specific" in out


def test_hints_are_in_the_shells_own_words(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed(db, f"SELECT 0.1 + range AS x FROM range(50);{ENTER}{CTRL_D}")
    err = capsys.readouterr().err
    assert ".rows 0" in err
    assert "--" not in err


def test_history_is_kept_for_its_owner_alone(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed(db, f".format csv{ENTER}SELECT 'kept' AS a;{ENTER}{CTRL_D}")
    file = history_file()
    assert file is not None
    assert "SELECT 'kept' AS a;" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    capsys.readouterr()


def test_no_home_for_history_is_no_reason_to_stop(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    typed(db, f".format csv{ENTER}SELECT 1 AS a;{ENTER}{CTRL_D}")
    assert capsys.readouterr().out == "a\n1\n"


# ------------------------------------------------------------------------------------------------ the file


def test_the_file_is_free_between_lines(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process could write it: a writer of this one can have it, and the shell sees what it wrote."""
    with Warehouse(db, restricted=True) as warehouse:
        session = Session(warehouse, Query("", format="csv"))
        session.obey("SELECT count(*) AS n FROM runs;")
        session.names()
        assert warehouse._connection is None
        with Warehouse(db, writable=True, wait_seconds=0) as writer:
            writer.sql("CREATE TABLE mine AS SELECT 1 AS x")
        session.obey("SELECT x FROM mine;")
        assert warehouse._connection is None
    assert capsys.readouterr().out == "n\n0\nx\n1\n"


def test_what_would_be_lost_keeps_the_file(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = f".format csv{ENTER}CREATE TEMP TABLE t AS SELECT 5 AS x;{ENTER}SELECT x FROM t;{ENTER}{CTRL_D}"
    typed(db, keys, Query("", write=True))
    assert capsys.readouterr().out == "x\n5\n"
    keys = f".format csv{ENTER}BEGIN;{ENTER}CREATE TABLE u AS SELECT 1 AS y;{ENTER}SELECT y FROM u;{ENTER}{CTRL_D}"
    typed(db, keys, Query("", write=True))
    out, err = capsys.readouterr()
    assert out == "y\n1\n"
    assert "A transaction was left open" in err
    with Warehouse(db) as warehouse:
        assert not warehouse.sql("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'u'").value()


def test_a_file_that_goes_away_is_a_sentence(db: Path) -> None:
    with Warehouse(db, restricted=True) as warehouse:
        session = Session(warehouse, Query(""))
        session.obey(".set a=1")
        db.rename(db.with_name("moved.duckdb"))
        with pytest.raises(ElwError, match="There is no warehouse"):
            session.obey("SELECT 1;")


# ------------------------------------------------------------------------------------------------ Tab


@pytest.fixture
def completer(db: Path) -> Iterator[ShellCompleter]:
    with Warehouse(db, restricted=True) as warehouse:
        session = Session(warehouse, Query(""))
        yield ShellCompleter(session.names, {name: word.offers for name, word in WORDS.items()})


@pytest.mark.parametrize(
    ("before", "offered", "not_offered"),
    [
        ("SELECT * FROM efas_h", "efas_halves", "energy"),
        ("SELECT * FROM ", "top_examples", "SELECT"),
        ("SELECT q_sp", "q_specific", "efas"),
        ("SELECT e.q_sp", "", "q_specific"),
        ("SEL", "SELECT", "efas"),
        ("sel", "select", "SELECT"),
        ("SELECT 'efas", "", "efas"),
        ("SELECT 1 -- efas", "", "efas"),
        (".desc", ".describe", "describe"),
        (".describe efas_h", "efas_halves", ""),
        (".format j", "jsonl", "csv"),
        ("@top", "@top_nll", ""),
        ("@top_nll la", "layer=", "n="),
        ("@nothing la", "", "layer="),
    ],
)
def test_what_tab_offers(completer: ShellCompleter, before: str, offered: str, not_offered: str) -> None:
    found = [each.text for each in completer.get_completions(Document(before), CompleteEvent())]
    assert not offered or offered in found
    assert not not_offered or not_offered not in found


def test_columns_of_an_alias_are_those_of_its_table(completer: ShellCompleter) -> None:
    query = "SELECT e. FROM efas AS e JOIN runs r USING (run_id) WHERE r.model = 'x'"
    for alias, there, elsewhere in (("e.", "q_specific", "settings"), ("r.", "settings", "q_specific")):
        at = query.index(alias) + 2
        found = [each.text for each in completer.get_completions(Document(query, at), CompleteEvent())]
        assert there in found
        assert elsewhere not in found


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_whatever_is_typed_can_be_looked_at(text: str) -> None:
    assert isinstance(is_whole(text), bool)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("SELECT 1;", True), ("SELECT 1 ; -- done", True), ("SELECT 1; /* done */ ", True), ("SELECT 1", False),
        ("SELECT ';", False), ("SELECT ';';", True), ('SELECT ";', False), ("SELECT $$;", False), ("-- ;", False),
        ("SELECT 1 /* ;", False), ("SELECT 1; /* ;", False), ("", False), (";", True), ("SELECT 'ü語';", True),
    ],
)  # fmt: skip
def test_a_semicolon_ends_a_statement_where_it_is_one(text: str, whole: bool) -> None:
    assert is_whole(text) is whole


# ------------------------------------------------------------------------------------------------ a terminal


def test_without_a_terminal_nothing_is_asked(
    db: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["sql", "--db", str(db)]) == 2
    assert "query" in capsys.readouterr().err


def test_on_a_terminal_ctrl_c_ends_the_query_and_ctrl_d_the_shell(db: Path) -> None:
    """A real one, as a process: a query that would take for ever is interrupted, the next is answered."""
    import pty

    process, terminal = pty.fork()
    if not process:
        os.environ.update(TERM="xterm", PYTHONPATH=f"{PACKAGE_PARENT}:{os.environ.get('PYTHONPATH', '')}")
        os.execv(sys.executable, [sys.executable, "-m", "energy_lens.cli", "sql", "--db", str(db)])
    seen = b""

    def wait_for(sign: bytes) -> None:
        nonlocal seen
        seen, deadline = b"", time.monotonic() + 120
        while sign not in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen):
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 1)[0]:
                piece = os.read(terminal, 65536)
                seen += piece
                if b"\x1b[6n" in piece:  # where is the cursor?
                    os.write(terminal, b"\x1b[1;1R")

    try:
        wait_for(b"elw>")
        os.write(terminal, b"SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b;\r")
        wait_for(b"\n")
        time.sleep(2)  # not timed: Ctrl-C is right before the query begins, too
        os.write(terminal, b"\x03")
        wait_for(b"interrupted.")
        wait_for(b"elw>")
        os.write(terminal, b"SELECT 6 * 7 AS answer;\r")
        wait_for(b"42")
        wait_for(b"elw>")
        os.write(terminal, b"\x04")
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        os.close(terminal)
