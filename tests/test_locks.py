"""One command at a time writes in a place, who is second is told who is first, and what cannot be written is told."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

import energy_lens
from energy_lens.cli.main import main
from energy_lens.errors import UsageError, WarehouseError
from energy_lens.tests.conftest import Tiny
from energy_lens.warehouse import opening
from energy_lens.warehouse.database import LockedError, check_writable, ingest_lock
from energy_lens.warehouse.locks import LOCK, HeldError, NoLocksError, claimed_file, claimed_folder, lock

HOLDER = """
import sys
from pathlib import Path
from energy_lens.warehouse.locks import claimed_file, claimed_folder
with {claim}(Path(sys.argv[1]), sys.argv[2]):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held() -> Iterator[Callable[[str, Path, str], int]]:
    """held("claimed_folder", output, "elw sae train"): another process that has an output; returns its id."""
    processes = []

    def hold(claim: str, output: Path, command: str) -> int:
        environment = os.environ | {"PYTHONPATH": str(Path(energy_lens.__file__).parent.parent)}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.format(claim=claim), str(output), command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.pid

    yield hold
    for process in processes:
        process.communicate("")


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_told_with_the_lock_file_and_the_remedy(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(NoLocksError) as raised, lock(tmp_path / "a.lock", "elw ingest"):
        pass
    assert raised.value.filename == str(tmp_path / "a.lock")
    said = rf"x\.duckdb\.ingest\.lock cannot be locked \({os.strerror(number)}\), .*: keep the warehouse on a disk"
    with pytest.raises(WarehouseError, match=said), ingest_lock(tmp_path / "x.duckdb"):
        pass
    with claimed_folder(tmp_path / "report", "elw report"):  # which may be written all the same
        (tmp_path / "report" / "file").write_text("text")
    assert everything(tmp_path / "report") == {"file"}


def test_nfs_words_for_a_held_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.lock").write_text("17 elw ingest")

    def flock(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(HeldError, match=r"elw ingest \(process 17\)"), lock(tmp_path / "a.lock", "elw ingest"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_duckdb_without_locks_is_no_busy_warehouse(number: int) -> None:
    error = duckdb.IOException(f'IO Error: Could not set lock on file "/net/x.duckdb": {os.strerror(number)}')
    failure = opening.opening_failure(Path("/net/x.duckdb"), error)
    assert not isinstance(failure, LockedError)
    assert "knows no locks" in str(failure)


def test_the_record_of_an_older_version_names_the_process_alone(tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_text("4711")
    with lock(tmp_path / "b.lock", "elw compact"):
        os.link(tmp_path / "b.lock", tmp_path / "c.lock")
    with open(tmp_path / "a.lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(HeldError, match=r"^another command \(process 4711\)$"), lock(tmp_path / "a.lock", "elw"):
            pass
    assert (tmp_path / "c.lock").read_text() == f"{os.getpid()} elw compact"


@pytest.mark.parametrize("command", ["elw ingest", "elw intervene", "elw compact"])
def test_who_writes_a_warehouse_is_named_by_the_command(command: str, tmp_path: Path) -> None:
    with (
        ingest_lock(tmp_path / "x.duckdb", command),
        pytest.raises(LockedError, match=rf"x\.duckdb is being written by {command} \(process {os.getpid()}\): wait"),
        ingest_lock(tmp_path / "x.duckdb"),
    ):
        pass


def test_of_many_who_want_a_removed_lock_one_has_it(tmp_path: Path) -> None:
    """The lock file of an output goes with its command: who waits for the old one must not hold it beside a new one."""
    path = tmp_path / "a.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    holders = []

    def wait(holder: str) -> None:
        holders.append(holder)
        os.unlink(path)
        os.close(descriptor)

    with lock(path, "elw report", wait), pytest.raises(HeldError), lock(path, "elw report"):
        pass
    assert len(holders) == 1


def test_the_second_writer_of_an_output_is_refused_by_name(
    tiny: Callable[[str], Tiny], tiny_warehouse: Path, small_corpus: Path, tmp_path: Path,
    held: Callable[[str, Path, str], int], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = tiny("llama")
    on_model = ("--model", str(model.folder), "--layers", "1", "--output")
    commands = {
        "sae train": ("claimed_folder", ("sae", "train", str(small_corpus), *on_model)),
        "lens train": ("claimed_file", ("lens", "train", str(small_corpus), *on_model)),
        "report": ("claimed_folder", ("report", "--db", str(tiny_warehouse), "--output")),
        "sae export": ("claimed_folder", ("sae", "export", str(model.saes / "layer_1"), "--output")),
        "sae import": (
            "claimed_folder",
            ("sae", "import", str(model.saes / "layer_1"), "--model", str(model.folder), "--output"),
        ),
    }
    for command, (claim, words) in commands.items():
        output = tmp_path / command.replace(" ", "_")
        process = held(claim, output, f"elw {command}")
        before = everything(tmp_path)
        assert main([*words, str(output)]) == 2
        said = capsys.readouterr().err
        assert f"{output} is being written by elw {command} (process {process}): wait for it" in said
        assert everything(tmp_path) == before


def test_what_cannot_be_written_is_told_before_any_work(
    tiny: Callable[[str], Tiny], tiny_warehouse: Path, small_corpus: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = tiny("llama")

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    for place in (
        "ingest.model.precision.load_in", "ingest.model.precision.load_as_begun", "reports.render.gather",
        "ingest.sae.registry.load_model", "ingest.sae.saving.save_file", "ingest.training.missing.complete_saes",
        "ingest.sae.pulling.repository",
    ):  # fmt: skip
        monkeypatch.setattr(f"energy_lens.{place}", work, raising=False)
    (tmp_path / "file").write_text("a file where a folder is needed")
    blocked = tmp_path / "file" / "below"
    on_model = ("--model", str(model.folder), "--layers", "1")
    sae = str(model.saes / "layer_1")
    commands = (
        ("sae", "train", str(small_corpus), *on_model, "-o", str(blocked)),
        ("lens", "train", str(small_corpus), *on_model, "-o", str(blocked)),
        ("lens", "train", str(small_corpus), *on_model, "-o", str(tmp_path / "file\0")),
        ("report", "--db", str(tiny_warehouse), "-o", str(blocked)),
        ("sae", "export", sae, "-o", str(blocked)),
        ("sae", "import", sae, "--model", str(model.folder), "-o", str(blocked)),
        ("sae", "pull", "hf:owner/name/path", "-o", str(blocked)),
        ("sql", "SELECT 1", "--db", str(tiny_warehouse), "-o", f"{blocked}.csv"),
        ("ingest", str(small_corpus), *on_model, "--train-saes", "--db", str(blocked)),
    )
    for words in commands:
        before = everything(tmp_path)
        code = main(words)
        said = capsys.readouterr().err
        assert code in (2, 3), (words, said)
        assert len(said.strip().splitlines()) == 1, (words, said)
        assert "Unexpected" not in said, words
        assert everything(tmp_path) == before, words


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    for claim in (claimed_file, claimed_folder):
        with pytest.raises(UsageError, match="cannot be written"), claim(tmp_path / "closed" / "output", "elw"):
            pass
    with pytest.raises(WarehouseError, match="closed cannot be written"):
        check_writable(tmp_path / "closed" / "x.duckdb")


def test_a_folder_that_was_made_in_vain_goes_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError), claimed_folder(tmp_path / "a" / "b", "elw report"):  # noqa: PT012
        assert everything(tmp_path) == {"a", "a/b", f"a/b/{LOCK}"}
        raise UsageError("nothing to report")
    assert everything(tmp_path) == set()
    with claimed_folder(tmp_path / "a" / "b", "elw report"):
        (tmp_path / "a" / "b" / "c").write_text("text")
    assert everything(tmp_path) == {"a", "a/b", "a/b/c"}
