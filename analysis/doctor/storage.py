"""Where things lie: the cache with its copies of models, room on the disks, and locks beside the warehouse."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from energy_lens.analysis.doctor.finding import Finding, note, ok, problem, size
from energy_lens.warehouse.locks import holder_of

#: Bytes below which a disk is as good as full, and below which a run may not fit.
FULL, LITTLE_ROOM = 1e8, 5e9


def cache() -> Iterator[Finding]:
    """The cache folder: writable, how large, and whether the converted models in it are whole."""
    from energy_lens.ingest.model.loading import cache_folder

    folder = cache_folder()
    if not os.path.isdir(folder):
        above = _there(folder)
        if os.path.isdir(above) and os.access(above, os.W_OK):
            yield ok("cache", f"{folder} is not there yet and is made when it is needed")
        else:
            yield problem("cache", f"{folder} cannot be made in {above}", "set ELW_CACHE to a folder of yours")
        return
    if os.access(folder, os.W_OK | os.X_OK):
        yield ok("cache", f"{folder}: {_contents(folder)}")
    else:
        yield problem("cache", f"{folder} cannot be written", "change its mode, or set ELW_CACHE to a folder of yours")
    yield from _copies(folder / "models")


def _contents(folder: Path) -> str:
    parts = []
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        n_bytes = sum(_size(file) for file in part.rglob("*"))
        if n_bytes:
            parts.append(f"{part.name} {size(n_bytes)}")
    return ", ".join(parts) or "empty"


def _size(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.lstat().st_size if not file.is_dir() else 0
    return 0


def _copies(models: Path) -> Iterator[Finding]:
    """Converted models whose files are not those that were written."""
    from energy_lens.ingest.model.converted import RECORD, fault

    for folder in sorted(models.glob("[!.]*")) if os.path.isdir(models) else []:
        source = ""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            source = str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["source_sha256"])
        reason = fault(folder, source)
        if reason is None:
            yield ok("copy of a model", f"{folder.name} is whole")
        elif "version of elw" in reason:
            yield note("copy of a model", f"{folder.name} {reason}", "nothing: it is made anew when it is next used")
        else:
            yield problem("copy of a model", f"{folder.name} {reason}", f"remove {folder}: it is made anew when used")


def room(warehouse: Path) -> Iterator[Finding]:
    """Room on the disks of the warehouse and of the cache."""
    from energy_lens.ingest.model.loading import cache_folder

    seen = set()
    for what, path in (("warehouse", warehouse.parent), ("cache", cache_folder())):
        place = _there(path)
        device = os.stat(place).st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(place).free
        wanted = LITTLE_ROOM + (_size(warehouse) if what == "warehouse" else 0)  # a compaction makes a second one
        subject, said = f"disk of the {what}", f"{size(free)} are free in {place}"
        if free < FULL:
            yield problem(subject, said, "make room, or keep it on another disk")
        elif free < wanted:
            yield note(subject, said, "make room before a long ingest, or before elw compact")
        else:
            yield ok(subject, said)


def locks(warehouse: Path) -> Iterator[Finding]:
    """Whether the warehouse's file system knows locks, and which command writes there now."""
    folder = _there(warehouse.parent)
    if not os.access(folder, os.W_OK):
        yield note("locks", f"{folder} cannot be written: the warehouse there can only be read", None)
    else:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:  # without a name, so that nothing is left
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kind that DuckDB takes
            yield ok("locks", f"the file system of {folder} knows locks")
        except OSError as error:
            yield problem("locks", f"{folder} takes no locks ({error.strerror})", "keep the warehouse on a local disk")
    real = Path(os.path.realpath(warehouse))
    if (holder := holder_of(real.with_name(real.name + ".ingest.lock"))) is not None:
        yield note("writer", f"{holder} writes {warehouse} now", "nothing: readers take turns with it")


def _there(path: Path) -> Path:
    """The path itself, or what there is of the folders above it."""
    path = Path(os.path.abspath(path))
    return next((one for one in (path, *path.parents) if os.path.exists(one)), Path("/"))
