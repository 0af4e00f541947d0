"""Files written whole or not at all: a scratch file beside the target, synced, then renamed over it."""

from __future__ import annotations

import contextlib
import glob
import os
import re
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
        scratch.make()
    except OSError as error:
        raise UsageError(f"{output} cannot be written ({error.strerror}): name another file with --output.") from error
    try:
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


@dataclass
class _Scratch:
    """A file on its way to a name."""

    target: Path
    path: Path
    mode: int = 0o600  #: that the target had, else what the umask leaves

    @classmethod
    def beside(cls, target: Path) -> _Scratch:
        return cls(target, target.with_name(f".{target.name}.{os.getpid()}.tmp"))

    def make(self) -> None:
        for left in self.target.parent.glob(f".{glob.escape(self.target.name)}.*.tmp"):
            if is_abandoned(left):
                with contextlib.suppress(OSError):
                    os.unlink(left)
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
    """Whether this is a scratch file of `whole` whose process was killed and left it: it is gone, or is this one."""
    name = re.fullmatch(r"\..+\.([0-9]{1,9})\.tmp", path.name)
    if name is None:
        return False  # somebody else's
    try:
        os.kill(int(name[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's, at work
    return int(name[1]) == os.getpid()


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
