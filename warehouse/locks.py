"""A file or folder that is about to be written in, one process at a time that writes it out: lock files.

A lock is the kernel's and ends with its process, however that ends. Its file says whose it is, so that who is refused
can be told which command to wait for. Taking a lock beside an output also shows, before any work, that one can write
there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from energy_lens.errors import UsageError

#: What the lock file in a folder that is being written is called; of a file it is .NAME.elw.lock beside it.
LOCK = ".elw.lock"

#: What helps where an output is another command's, or cannot be written.
ANOTHER = "choose another --output"

#: Bytes of a lock file that are read.
RECORD_BYTES = 128


class HeldError(Exception):
    """A lock is another process's."""

    def __init__(self, holder: str) -> None:
        self.holder = holder  #: the command and its process, as far as they are known
        super().__init__(holder)


class NoLocksError(OSError):
    """The file system of a lock file knows no locks, as some network file systems do not; filename is that file."""


@contextlib.contextmanager
def lock(path: Path, command: str, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file; the file stays.

    command: that takes the lock, as a user types it, for whoever meets it. wait: called with the holder where another
    process has it, which is then waited for; without it HeldError is raised.
    Raises NoLocksError where there are no locks to be had, and OSError where the file cannot be made.
    """
    descriptor = _locked(path, wait)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {command}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path, wait: Callable[[str], None] | None) -> int:
    """A descriptor of the lock file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(path, descriptor, wait)
            # Whoever had it before may have removed the file, and another may have made and locked a new one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(path: Path, descriptor: int, wait: Callable[[str], None] | None) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):  # held, also in NFS' words
                raise
            holder = _holder(os.pread(descriptor, RECORD_BYTES, 0))
            if wait is None:
                raise HeldError(holder) from error
            wait(holder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise NoLocksError(error.errno, error.strerror, str(path)) from error


def is_record(start: bytes) -> bool:
    """Whether a file that begins so may be a lock file: a process and, since versions that say so, its command."""
    return re.fullmatch(rb"\s*\d{1,10}( [a-z][a-z_ -]*)?\s*", start) is not None


def holder_of(path: Path) -> str | None:
    """The command that holds a lock file, and its process; None where nobody does, or that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(os.pread(descriptor, RECORD_BYTES, 0))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _holder(record: bytes) -> str:
    """Who holds a lock, by what its file says; older versions wrote the process alone."""
    process, _, command = record.decode(errors="replace").strip().partition(" ")
    return f"{command or 'another command'} (process {process or 'unknown'})"


# ------------------------------------------------------------------------------------------------ outputs


@contextlib.contextmanager
def claimed_file(output: Path, command: str) -> Iterator[None]:
    """Inside, no other command writes the file that a user named with --output; its folder is made.

    Raises UsageError when another one does, and when nothing can be written there.
    """
    if output.is_dir():
        raise UsageError(f"{output} is a folder: name a file with --output.")
    lock_file = output.with_name(f".{output.name}{LOCK}")
    with _made(output.parent, output, ANOTHER), _claimed(lock_file, output, command, ANOTHER):
        yield


@contextlib.contextmanager
def claimed_folder(output: Path, command: str, remedy: str = ANOTHER) -> Iterator[None]:
    """Inside, no other command writes into the folder that a user named, which is made.

    A folder that was made and is empty in the end is taken away again. remedy: how to name another one.
    Raises UsageError when another one does, and when nothing can be written there.
    """
    with _made(output, output, remedy), _claimed(output / LOCK, output, command, remedy):
        yield


@contextlib.contextmanager
def _made(folder: Path, output: Path, remedy: str) -> Iterator[None]:
    """Make a folder and what it lies in; in the end those go that are still empty."""
    missing = [one for one in (folder, *folder.parents) if not os.path.exists(one)]  # the innermost first
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise _unwritable(output, error, remedy) from error
        yield
    finally:
        for one in missing:
            with contextlib.suppress(OSError, ValueError):
                one.rmdir()


@contextlib.contextmanager
def _claimed(file: Path, output: Path, command: str, remedy: str) -> Iterator[None]:
    """Hold the lock of an output, whose file goes in the end; without one, where the file system knows no locks."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(file, command))
        except HeldError as error:
            raise UsageError(f"{output} is being written by {error.holder}: wait for it, or {remedy}.") from error
        except NoLocksError:
            pass  # better two at once than none at all
        except (OSError, ValueError) as error:
            raise _unwritable(output, error, remedy) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(file)


def _unwritable(output: Path, error: OSError | ValueError, remedy: str) -> UsageError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UsageError(f"{output} cannot be written ({reason}): {remedy}.")
