"""stdin, stdout and stderr in every state: closed at start, full, left by their reader, or a caller's own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import energy_lens
from energy_lens import console
from energy_lens.cli.main import main
from energy_lens.console import Messages, bar, say, some_of
from energy_lens.warehouse.database import Warehouse

PACKAGE_PARENT = Path(energy_lens.__file__).parent / ".types"
ELW = f'{sys.executable} -c "import sys; from energy_lens.cli import main; sys.exit(main())"'
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{PACKAGE_PARENT}:{os.environ.get('PYTHONPATH', '')}"}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streams") / "elw.duckdb"
    Warehouse(path, writable=True).close()
    return path


def shell(command: str, db: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """A command line of bash in which `elw` is the program; a pipe fails with what fails in it."""
    script = f'set -o pipefail; elw() {{ {ELW} "$@"; }}; {command}'
    environment = ENVIRONMENT | {"ELW_WAREHOUSE": str(db)}
    return subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False, cwd=db.parent, **more
    )


# ------------------------------------------------------------------------------------------------ closed at start


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "<&- 2>&-"])
def test_a_stream_that_is_closed_at_start_changes_nothing_else(db: Path, closed: str, tmp_path: Path) -> None:
    """The work is done, stdout has data alone, and no file takes the place of a stream that is not there."""
    before = db.read_bytes()
    done = shell(f"elw sql 'SELECT 42 AS a' -f csv {closed}", db)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if ">&- " in f"{closed} ".replace("2>&-", "") else "a\n42\n")
    assert db.read_bytes() == before
    target = tmp_path / "out.csv"
    done = shell(f"elw sql 'SELECT 42 AS a' -o {target} {closed}", db)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert target.read_text() == "a\n42\n"


def test_messages_never_stand_among_the_data(db: Path) -> None:
    """With stderr closed, Python's print would have written them to stdout."""
    done = shell("elw sql 'DELETE FROM runs' --write 2>&-", db)  # says how many rows it changed
    assert (done.returncode, done.stdout) == (0, "")
    done = shell("elw sql 'FROM nowhere' 2>&-", db)
    assert (done.returncode, done.stdout) == (2, "")
    assert shell("elw describe nowhere --debug 2>&-", db).stdout == ""


def test_no_stdin_is_no_query(db: Path) -> None:
    done = shell("elw sql <&-", db)
    assert done.returncode == 2
    assert done.stderr.startswith("elw: The")
    assert done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------------ the reader leaves


def test_the_reader_of_the_messages_may_leave(db: Path, tmp_path: Path) -> None:
    """The work goes on without, and its exit code is its own."""
    target = tmp_path / "mine.csv"
    done = shell(f"elw sql 'SELECT 1 AS a' -o {target} 2> >(exec true)", db)
    assert done.returncode == 0
    assert target.exists()
    done = shell("elw sql 'CREATE TABLE mine (a INTEGER)' --write 2>&1 >/dev/null | true", db)
    assert done.returncode == 0
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM mine").value() == 0
    for gone in ("2>/dev/full", "2>&1 >/dev/null | true", "2</dev/null"):
        assert shell(f"elw sql 'FROM nowhere' {gone}", db).returncode == 2, gone


def test_an_ingest_whose_messages_nobody_reads_is_whole(tiny: Any, small_corpus: Path, tmp_path: Path) -> None:
    """`elw ingest … 2>&1 | head -1`"""
    model, db = tiny("llama"), tmp_path / "elw.duckdb"
    words = f"{small_corpus} --model {model.folder} --sae {model.saes} --context 32 --dtype float32 --energies nll"
    done = shell(f"elw ingest {words} --max-tokens 500 --compile off 2>&1 | head -1", db)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    with Warehouse(db) as warehouse:
        tokens, covered = warehouse.sql("SELECT (SELECT count(*) FROM tokens), stats_tokens FROM runs").fetchone()
    assert tokens == covered >= 500


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_has_seen_enough_ends_what_writes_data(db: Path, unbuffered: str) -> None:
    environment = f"PYTHONUNBUFFERED={unbuffered}"
    done = shell(f"export {environment}; elw sql 'FROM range(1_000_000)' -f csv | head -1", db)
    assert (done.returncode, done.stdout, done.stderr) == (0, "range\n", "")
    done = shell(f"export {environment}; elw --help | head -1", db)
    assert (done.returncode, done.stderr) == (0, "")
    done = shell(f"export {environment}; elw sql 'FROM range(1_000_000)' -f csv -o >(head -1 >&2)", db)
    assert (done.returncode, done.stderr) == (0, "range\n"), "a pipe that is named is one as well"


def test_a_pipe_that_breaks_elsewhere_is_a_failure(
    db: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A connection that the other side closed is no reader of ours: exit 0 would say that all is done."""
    from energy_lens.warehouse import query

    def fail(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(query, "run", fail)
    assert main(["sql", "SELECT 1"]) == 1
    assert "Broken pipe" in capfd.readouterr().err


def test_what_is_to_be_done_after_the_data_is_done(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`elw check | head -1` still ends in 1, and `elw sae train | head -1` still saves its last layer."""
    from energy_lens.cli.listing import print_line

    class Left(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Left())
    print_line("somewhere")


# ------------------------------------------------------------------------------------------------ a caller's streams


@pytest.mark.parametrize("words", [["sql", "SELECT chr(8364) AS a"], ["sql", "FROM nowhere"], ["--version"], ["sql"]])
def test_a_caller_s_streams_are_left_alone(db: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their encoding, their line ends, their files: whatever the command was and however it ended."""
    monkeypatch.setenv("ELW_WAREHOUSE", str(db))
    streams = {}
    for name, text in (("stdin", b"SELECT 1"), ("stdout", b""), ("stderr", b"")):
        streams[name] = io.TextIOWrapper(io.BytesIO(text), encoding="latin-1", newline="\r\n")
        monkeypatch.setattr(sys, name, streams[name])
    main(words)
    for name, stream in streams.items():
        assert getattr(sys, name) is stream
        assert (stream.encoding, stream.errors, stream.closed) == ("latin-1", "strict", False)
    streams["stdout"].write("after\n")
    streams["stdout"].flush()
    assert streams["stdout"].buffer.getvalue().endswith(b"after\r\n")  # type: ignore[attr-defined]


def test_a_caller_s_stdout_survives_an_error_of_the_system(db: Path, tmp_path: Path) -> None:
    """After any OSError it was /dev/null."""
    code = (
        "import sys\nfrom energy_lens.cli import main\nfrom energy_lens.warehouse import query\n"
        "def fail(*_): raise OSError(28, 'No space left on device')\n"
        "query.run = fail\nprint(main(['sql', 'SELECT 1']))\nprint('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\nstill here\n"


@pytest.mark.parametrize("missing", [("stdout",), ("stderr",), ("stdin", "stdout", "stderr")])
def test_a_caller_without_streams(
    db: Path, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As under pythonw, or in a service."""
    monkeypatch.setenv("ELW_WAREHOUSE", str(db))
    for name in missing:
        monkeypatch.setattr(sys, name, None)
    target = tmp_path / "out.csv"
    codes = [main(["sql", "SELECT 1 AS a"]), main(["sql", "SELECT 1 AS a", "-o", str(target)]), main(["tables"])]
    codes.append(main(["sql", "FROM nowhere"]))
    with bar("Work", 2, "token") as progress:
        progress.update(2)
    monkeypatch.undo()
    assert codes == [0, 0, 0, 2]
    assert target.read_text() == "a\n1\n"


# ------------------------------------------------------------------------------------------------ messages


class Refusing(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "x"), OSError(28, "x"), OSError(5, "x"), OSError(9, "x"), ValueError("closed")]
)
def test_a_message_that_cannot_be_written_is_lost(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Refusing(error))
    say("something")
    with bar("Work", 10, "token") as progress:
        progress.update(10)
    assert console.messages.isatty() is False


def test_a_message_is_written_though_the_stream_lacks_its_characters() -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Messages(narrow).write("caf\u00e9\n")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"caf\\xe9\n"  # type: ignore[attr-defined]


def test_a_sentence_names_a_few_and_counts_the_rest() -> None:
    names = [f"natural/document-{i}.txt" for i in range(2_000)]
    assert some_of(names[:1]) == names[0]
    assert some_of(["a", "b", "c"]) == "a, b, c"
    assert some_of(names) == "natural/document-0.txt, natural/document-1.txt and 1,998 more"
