"""Files written whole or not at all: a scratch file beside the target, synced, then renamed over it.

A scratch file or folder is named .NAME.NUMBER.PROCESS.tmp after what it is to become and who makes it. It is removed
whatever happens to the work; what a process that was killed left is removed by the next one that makes the same thing.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from energy_lens.errors import ElwError, UsageError


def is_special(output: Path) -> bool:
    """Something that is written to but never replaced: a device or a pipe."""
    return os.path.exists(output) and not os.path.isfile(output) and not os.path.isdir(output)


@contextlib.contextmanager
def whole(*targets: Path) -> Iterator[list[Path]]:
    """A scratch file beside each target; when all went well they take the targets' names, in the order given.

    Else they are removed, and what was there stays, as it does for a scratch file that is gone by then. A target that
    is replaced hands on its mode. What the disk says passes through as OSError: the caller knows the remedy.
    """
    scratches = [_Scratch.beside(target) for target in targets]
    try:
        for scratch in scratches:
            scratch.make()
        yield [scratch.path for scratch in scratches]
        _take_names(scratches)
    finally:
        for scratch in scratches:
            scratch.remove()


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A scratch file that takes the place of the file that a user named, through a link to what the link names.

    Raises UsageError when nothing can be written there, ElwError when it cannot be replaced.
    """
    target = Path(os.path.realpath(output))
    if os.path.isdir(target):
        raise UsageError(f"{output} is a folder: name a file with --output.")
    scratch = _Scratch.beside(target)
    try:
        try:
            scratch.make()
        except OSError as error:
            raise UsageError(
                f"{output} cannot be written ({error.strerror}): name another file with --output."
            ) from error
        yield scratch.path
        try:
            _take_names([scratch])
        except OSError as error:
            raise ElwError(f"{output} cannot be replaced ({error.strerror}): name another file.") from error
    finally:
        scratch.remove()


def check_replaceable(file: Path) -> None:
    """Raises OSError unless `whole` can write a file of that name; asked before long work."""
    scratch = _Scratch.beside(file)
    try:
        scratch.make()
    finally:
        scratch.remove()


@contextlib.contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder in `parent` for work on something of that name; it is removed at the end, with what is still in it.

    What the disk says passes through as OSError: the caller knows the remedy.
    """
    _clear_abandoned(parent, name)
    path = _scratch_path(parent / name)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


#: Tells the scratch files of one process apart, whose threads may make the same thing.
_numbers = itertools.count()


def _scratch_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.{next(_numbers)}.{os.getpid()}.tmp")


def _clear_abandoned(folder: Path, name: str) -> None:
    """Remove what killed processes left of their work on something of that name."""
    for left in folder.glob(f".{glob.escape(name)}.*.tmp"):
        if is_abandoned(left):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else os.unlink(left)


@dataclass
class _Scratch:
    """A file on its way to a name."""

    target: Path
    path: Path
    mode: int = 0o600  #: that the target had, else what the umask leaves

    @classmethod
    def beside(cls, target: Path) -> _Scratch:
        return cls(target, _scratch_path(target))

    def make(self) -> None:
        _clear_abandoned(self.target.parent, self.target.name)
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            status = os.stat(self.target) if os.path.exists(self.target) else os.fstat(descriptor)
            self.mode = stat.S_IMODE(status.st_mode)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _take_names(scratches: Sequence[_Scratch]) -> None:
    ready = [scratch for scratch in scratches if os.path.exists(scratch.path)]
    for scratch in ready:
        sync(scratch.path)
        os.chmod(scratch.path, scratch.mode)  # what wrote it may have made it anew, for the owner alone
    for scratch in ready:
        os.replace(scratch.path, scratch.target)
    for folder in {scratch.target.parent for scratch in ready}:
        with contextlib.suppress(OSError):  # some file systems sync no folders
            sync(folder)


def is_abandoned(path: Path) -> bool:
    """Whether this is a scratch file or folder whose process was killed and left it.

    So it is when no process has its number, or one that began after the last change: numbers are given out again, in a
    container the same few every time.
    """
    name = re.fullmatch(r"\..+\.([0-9]{1,9})\.tmp", path.name)
    if name is None:
        return False  # somebody else's
    process = int(name[1])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's, at work
    try:
        return path.stat().st_mtime < _beginning(process) - _CLOCK_MARGIN
    except OSError:
        return process == os.getpid()  # a system that does not say: this one has only begun


#: Seconds that the clocks of a file and of a process may differ by.
_CLOCK_MARGIN = 60.0


def _beginning(process: int) -> float:
    """When a process began, in seconds since 1970. Raises OSError where the system has no /proc, or no such process."""
    ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])  # behind its name in brackets
    booted = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    if booted is None:
        raise OSError("/proc/stat has no btime")
    return int(booted[1]) + ticks / os.sysconf("SC_CLK_TCK")


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's entries, before what comes next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """A file to write text to, as UTF-8; a full disk is a sentence. Raises BrokenPipeError when its reader has left."""
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ElwError(
            f"{path.parent} cannot take the output ({error.strerror}): make room or choose another."
        ) from error
