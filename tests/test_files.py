"""Files written whole or not at all, whatever happens on the way and however many write."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from energy_lens.errors import UsageError
from energy_lens.ingest.sae.registry import check_free
from energy_lens.warehouse.files import is_abandoned, replacing, scratch_folder, whole

KILLED = """
import os, signal, sys
from pathlib import Path
from energy_lens.warehouse.files import whole
with whole(Path(sys.argv[1])) as (scratch,):
    scratch.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_files_take_their_names_together(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("old")
    with whole(first, second) as scratches:
        for scratch in scratches:
            scratch.write_text("new")
        assert first.read_text() == "old"
        assert not second.exists()
    assert (first.read_text(), second.read_text()) == ("new", "new")
    assert names(tmp_path) == {"a", "b"}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_what_was_there_stays_when_it_fails(failure: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(type(failure)), whole(tmp_path / "a", tmp_path / "b") as scratches:  # noqa: PT012
        scratches[0].write_text("half")
        raise failure
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_text() == "old"


def test_a_scratch_file_that_is_gone_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with whole(tmp_path / "a", tmp_path / "b") as scratches:
        scratches[0].unlink()
        scratches[1].write_text("new")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("old", "new")


def test_the_mode_is_the_target_s_or_what_the_umask_leaves(tmp_path: Path) -> None:
    """Whatever mode the writer gave its scratch file, as safetensors gives one for the owner alone."""
    (tmp_path / "kept").write_text("old")
    (tmp_path / "kept").chmod(0o640)
    before = os.umask(0o022)
    try:
        with whole(tmp_path / "kept", tmp_path / "made") as scratches:
            for scratch in scratches:
                scratch.write_text("new")
                scratch.chmod(0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("kept", "made")]
    assert modes == [0o640, 0o644]


def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", KILLED, target], check=False)
        assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2, "each writer clears away what the one before left"
    assert target.read_text() == "old"
    others = tmp_path / f".a.{os.getppid()}.tmp"  # a process that lives
    others.write_text("at work")
    strange = tmp_path / ".a.notes.tmp"
    strange.write_text("somebody's")
    with whole(target) as (scratch,):
        scratch.write_text("new")
    assert names(tmp_path) == {"a", others.name, strange.name}
    assert target.read_text() == "new"


def test_a_process_number_that_was_given_out_again_keeps_nothing(tmp_path: Path) -> None:
    """What was last changed before its process began is of another, which is gone."""
    left = [tmp_path / f".a.{process}.tmp" for process in (os.getpid(), os.getppid())]
    for path in left:
        path.write_text("half")
        assert not is_abandoned(path), "at work"
        os.utime(path, (0, 1_000_000_000))
        assert is_abandoned(path)
    with whole(tmp_path / "a") as (scratch,):
        scratch.write_text("new")
    assert names(tmp_path) == {"a"}


def test_a_scratch_folder_goes_whatever_happens_and_with_it_what_was_left(tmp_path: Path) -> None:
    left = tmp_path / ".model.4194999.tmp"
    (left / "below").mkdir(parents=True)
    (left / "below" / "weights").write_text("half")
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path, "model") as folder:  # noqa: PT012
        (folder / "weights").write_text("half")
        assert names(tmp_path) == {folder.name}
        raise KeyboardInterrupt
    assert names(tmp_path) == set()
    with scratch_folder(tmp_path, "model") as folder, scratch_folder(tmp_path, "model") as other:  # of two threads
        other.rename(tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert not folder.exists()


def test_two_threads_may_write_one_file(tmp_path: Path) -> None:
    """The last one to end has its way, and nothing is left."""
    with whole(tmp_path / "a") as (first,):
        first.write_text("first")
        with whole(tmp_path / "a") as (second,):
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == {"a"}


def test_a_folder_of_a_killed_export_is_free_again(tmp_path: Path) -> None:
    """And one that holds anything else is not."""
    (tmp_path / ".cfg.json.4194999.tmp").write_text("half")
    check_free(tmp_path)
    for name in (".notes.tmp", f".cfg.json.{os.getppid()}.tmp"):  # somebody's, and that of a writer at work
        (tmp_path / name).write_text("other")
        with pytest.raises(UsageError, match="exists already"):
            check_free(tmp_path)
        (tmp_path / name).unlink()
    check_free(tmp_path)


def test_a_link_is_written_through_and_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as scratch:
        scratch.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    with pytest.raises(UsageError, match="is a folder"), replacing(tmp_path):
        pass
    with pytest.raises(UsageError, match="cannot be written"), replacing(tmp_path / "nowhere" / "file"):
        pass
