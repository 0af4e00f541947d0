"""A name in, an open DuckDB file of that name out: which names will do, a new file made whole, and why one won't open.

Nothing here knows a table; `sharing` says what several in one process open together.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb

from energy_lens.errors import ElwError, UsageError, WarehouseError
from energy_lens.warehouse import migrations
from energy_lens.warehouse.files import sync
from energy_lens.warehouse.interrupts import FULL_DISK, interrupts_noticed, is_full_disk

DEFAULT_FILE = "elw.duckdb"

#: Files are written so that every DuckDB from this version on can read them.
STORAGE_VERSION = "v1.5.0"

#: What DuckDB or a user would take for something in memory, on another machine or of another program.
_ELSEWHERE = re.compile(
    r":memory:|(md|motherduck|duckdb|ducklake|quack|sqlite|postgres|postgresql|mysql|file|https?|hf|s3|gs|gcs|r2|azure|az"
    r"|abfss?):",
    re.IGNORECASE,
)

#: How DuckDB begins when a setting is none, or its value will not do.
_OF_SETTINGS = ("options were not recognized", "Parser Error", "Syntax Error", "Not implemented Error", "configuration")

#: What a file system answers that knows no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO)


class LockedError(WarehouseError):
    """Another process, or another part of this one, holds the file; waiting may help."""


# ------------------------------------------------------------------------------------------------ names


def warehouse_path(path: str | Path | None = None) -> Path:
    """The file that is meant: the given one, else ELW_WAREHOUSE, else elw.duckdb here.

    Raises UsageError for what can be no file's name, and WarehouseError for one that DuckDB would take for something
    else and for a folder, before anything is named after it.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise UsageError(f"{path!r} is no path of a warehouse: give one as text or Path.")
    try:
        readable = "\0" not in str(path).encode().decode()
    except UnicodeEncodeError:
        readable = False
    if not readable:
        raise UsageError(f"{str(path)[:80]!r} can be no path of a warehouse: name a file in UTF-8.")
    named = str(path or os.environ.get("ELW_WAREHOUSE") or DEFAULT_FILE)
    shown = repr(named)[1:-1]  # on one line, whatever it holds
    if _ELSEWHERE.match(named):
        raise WarehouseError(
            f"{shown} is no file of this machine, which a warehouse is: name one with --db, by its whole path if it is."
        )
    if any(ord(character) < 32 for character in named):
        raise WarehouseError(f"{shown} holds a line break or another control character: name another file with --db.")
    try:
        file = Path(named).expanduser()
    except RuntimeError as error:
        user = named.partition("/")[0]
        raise WarehouseError(
            f"There is no user {user[1:]}, whose home {user} would be: name a file with --db."
        ) from error
    if os.path.isdir(file):
        raise WarehouseError(f"{file} is a folder, not a warehouse file: name a file with --db.")
    return file


def compaction_folder(path: Path) -> Path:
    """Where a compaction of that file works; hidden, so that no corpus takes it for text."""
    return path.with_name(f".{path.name}.compact")


def check_name(path: Path, writable: bool) -> None:
    """Raises WarehouseError when no warehouse can be opened by that name."""
    if path.parent.name == compaction_folder(path).name:
        whole = path.parent.parent / path.name
        raise WarehouseError(f"{path} is the unfinished work of elw compact: name {whole} with --db.")
    if not writable and not os.path.exists(path):
        raise WarehouseError(f"There is no warehouse at {path}: make one with elw ingest, or name another with --db.")
    if os.path.isdir(path):
        raise WarehouseError(f"{path} is a folder, not a warehouse file: name a file with --db.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise WarehouseError(f"{path} is a device or a pipe, not a warehouse file: name a file with --db.")
    if writable and not os.path.isdir(path.parent):
        raise WarehouseError(f"The folder {path.parent} does not exist: make it, or name another file with --db.")


# ------------------------------------------------------------------------------------------------ connections


def connect(path: Path, writable: bool, config: Mapping[str, str]) -> duckdb.DuckDBPyConnection:
    """A connection to a file as it is: what `Warehouse` opens, before it looks at the schema.

    Raises WarehouseError when there is no such file to open, LockedError when another process holds it, UsageError for
    a setting that DuckDB does not have.
    """
    check_name(path, writable)
    settings = {"python_enable_replacements": "false", **_spilling(path), **config}
    if writable:
        settings["storage_compatibility_version"] = STORAGE_VERSION
    try:
        connection = duckdb.connect(os.path.abspath(path), read_only=not writable, config=settings)
        # In python -c, a prompt or a notebook DuckDB draws a bar on stdout, among the data. In a notebook without
        # ipywidgets there is none, and DuckDB refuses to be told so.
        if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() != [(False,)]:
            connection.execute("SET enable_progress_bar = false")
        return connection
    except duckdb.Error as error:
        raise opening_failure(path, error, config) from error


def _spilling(path: Path) -> dict[str, str]:
    """Where a query puts what memory cannot hold: beside the file, as DuckDB does, or else where temporary files go."""
    beside = path.with_name(path.name + ".tmp")
    if os.access(path.parent, os.W_OK) and (beside.is_dir() or not os.path.lexists(beside)):
        return {}
    return {"temp_directory": str(Path(tempfile.gettempdir()) / f"{path.name}.{os.getpid()}.tmp")}


def opening_failure(path: Path, error: duckdb.Error, config: Mapping[str, str] | None = None) -> ElwError:
    """What DuckDB said of a file that it cannot open, in a sentence."""
    text = " ".join(str(error).split())
    if is_full_disk(error):
        return ElwError(FULL_DISK)
    if unlocked := re.search(rf"lock on file [^:]*: ({'|'.join(map(os.strerror, _NO_LOCKS))})", text):
        return WarehouseError(
            f"{path} cannot be locked ({unlocked[1]}), since its file system knows no locks: keep the warehouse on a "
            "disk of this machine (--db)."
        )
    if "lock on file" in text or "Conflicting lock" in text:
        holder = re.search(r"held in (.+?) \(PID (\d+)\)", text)
        who = f"{holder[1]} (process {holder[2]})" if holder else "another process"
        return LockedError(f"{path} is held by {who}: wait for it or close it, then try again.")
    if "different configuration" in text:  # by a connection that is DuckDB's own, not a Warehouse
        return LockedError(f"{path} is already open in this process with other settings: close it first.")
    if config and any(sign in text for sign in _OF_SETTINGS):
        shown = ", ".join(f"{name} = {value!r}" for name, value in config.items())
        return UsageError(f"DuckDB does not take the settings {shown} ({text[:160]}): see its manual for their names.")
    if "version number" in text or "newer version" in text:
        return WarehouseError(f"{path} was written by a newer DuckDB than {duckdb.__version__}: upgrade duckdb.")
    if "Permission denied" in text or "read-only" in text.lower():
        return WarehouseError(f"{path} cannot be opened for want of permission: check its owner and mode.")
    return WarehouseError(f"{path} is not a readable warehouse ({text[:160]}): restore it from a copy or ingest anew.")


# ------------------------------------------------------------------------------------------------ a new file


def create_if_missing(path: Path) -> None:
    """Make a new warehouse whole or not at all: FILE.new gets the schema and then the name, whatever kills us.

    An empty file, such as mktemp leaves, counts as missing.
    """

    def missing() -> bool:
        return not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path))

    if not missing() or not os.path.isdir(path.parent):
        return
    new = path.with_name(path.name + ".new")
    log = path.with_name(path.name + ".wal")
    try:
        with _folder_lock(path.parent):
            if not missing():  # another process was faster
                return
            if log.exists():
                raise WarehouseError(f"{log} is left of a warehouse that is gone: bring {path} back, or remove {log}.")
            _remove(new)
            try:
                _make(new, path)
                os.replace(new, path)  # not through `files`: DuckDB makes the file, and a log beside it
            finally:
                _remove(new)
            sync(path.parent)
    except OSError as error:
        if is_full_disk(error):
            raise ElwError(FULL_DISK) from error
        raise WarehouseError(f"{path} cannot be made ({error.strerror}): name another file with --db.") from error


def _make(new: Path, path: Path) -> None:
    """A file of that name with this version's schema, on the disk."""
    try:
        connection = connect(new, True, {})
        try:
            with interrupts_noticed():
                migrations.migrate(connection, path)
                connection.execute("CHECKPOINT")
        finally:
            connection.close()
    except duckdb.Error as error:
        raise opening_failure(path, error) from error
    sync(new)


def _remove(new: Path) -> None:
    """Remove what there is of an unfinished file."""
    for leftover in (new, new.with_name(new.name + ".wal")):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """One process at a time makes a warehouse in a folder; without effect where folders cannot be locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
