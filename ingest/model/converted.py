"""A folder of the cache in, whether what was converted into it still holds out; and how a copy takes its place.

Beside a copy's files lies a record of them. Sizes and times are compared whenever the copy is used, which costs
nothing; contents are read where a time differs (a cache that was copied elsewhere).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from energy_lens.console import say
from energy_lens.warehouse.files import scratch_folder, whole

#: Raise it when a copy would come out otherwise, or when more of a source is checked: older copies are made anew.
CONVERSION = 1

#: The file of a copy that says what belongs to it.
RECORD = "elw_copy.json"


def write_record(folder: Path, sha256: str) -> None:
    """Note what a finished copy is: its conversion, the sha256 of its source, and its files."""
    files = {path.name: _facts(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD}
    record = {"conversion": CONVERSION, "source_sha256": sha256, "files": files}
    with whole(folder / RECORD) as (scratch,):
        scratch.write_text(json.dumps(record, indent=1), encoding="utf-8")


def fault(folder: Path, sha256: str, contents: bool = False) -> str | None:
    """Why a copy of the source with that sha256 does not hold, as the rest of a sentence; None where it does.

    contents: read the files even where size and time are those of the record.
    """
    if not os.path.isdir(folder):
        return "is not there"
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        conversion, source, files = record["conversion"], record["source_sha256"], dict(record["files"])
        if conversion != CONVERSION:
            return "was made by another version of elw"
        if source != sha256:
            return "was made from another file"
        for name, noted in files.items():
            if reason := _difference(folder / name, noted, contents):
                return reason
    except FileNotFoundError:
        return "was made by an older version of elw"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"has a damaged record ({type(error).__name__})"
    if any(os.stat(folder / name).st_mtime_ns != noted["mtime_ns"] for name, noted in files.items()):
        with contextlib.suppress(OSError):  # a cache that others keep: contents are read again the next time
            write_record(folder, sha256)
    return None


def adopt(folder: Path, sha256: str) -> bool:
    """Give a copy that an older version made without a record the record that it lacks; returns whether it is whole.

    Whole by structure: weights as long as their headers say, a configuration, a tokenizer.
    """
    from safetensors import SafetensorError, safe_open

    if (folder / RECORD).exists():
        return False
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        weights = list(folder.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="pt"):  # which compares the file's length with its header
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    if not weights:
        return False
    with contextlib.suppress(OSError):
        write_record(folder, sha256)
    return True


def put_in_place(scratch: Path, folder: Path, sha256: str) -> None:
    """Have a finished copy take its folder's name; one that holds, of a process that was first, stays instead."""
    write_record(scratch, sha256)
    if os.path.lexists(folder):
        if fault(folder, sha256) is None:
            return
        with scratch_folder(folder.parent, f"{folder.name}.old") as aside:
            folder.rename(aside / "old")
            _take_name(scratch, folder)
    else:
        _take_name(scratch, folder)


def _take_name(scratch: Path, folder: Path) -> None:
    # Another process may have been first after all, where a file system knows no locks: its copy stands.
    with contextlib.suppress(FileExistsError, OSError):
        scratch.rename(folder)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process converts into a folder beside that one; one that is at work is waited for.

    The lock is on the folder that holds both, and ends with the process. Where locks are not to be had two may do the
    same work, and one of their copies stays.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.parent, os.O_RDONLY)
    except OSError:
        yield  # what cannot be written is told by who writes
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process is converting a model into {folder.parent}: waiting for it …")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def _difference(path: Path, noted: Any, contents: bool) -> str | None:
    """How a file differs from what was noted of it, as the rest of a sentence."""
    try:
        status = os.stat(path)
    except OSError:
        return f"lacks {path.name}"
    if status.st_size != noted["size"]:
        return f"is damaged ({path.name} has {status.st_size:,} bytes where {noted['size']:,} were written)"
    if (contents or status.st_mtime_ns != noted["mtime_ns"]) and _sha256(path) != noted["sha256"]:
        return f"is damaged ({path.name} holds something else than was written)"
    return None


def _facts(path: Path) -> dict[str, Any]:
    status = os.stat(path)
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
