"""Files of a site: rendered beside it first, then all put in place, so that a failure leaves an earlier site as it was.

A folder is a site of ours when its manifest says so; that also names the files, so that pages which are no more go.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from energy_lens.errors import ElwError, UsageError
from energy_lens.warehouse.files import scratch_folder, sync
from energy_lens.warehouse.locks import LOCK

#: What names a folder as a site, and lists its files.
MANIFEST = "elw-site.json"
KIND = "energy-lens site"

#: What scratch folders of a site are named after.
_SCRATCH = "elw-site"

#: Names that files of a site have; no other file is ever taken away, whatever a manifest says.
_OURS = re.compile(r"(?:[a-z]+\.html|feature/\d+-\d+\.html|document/\d+\.html|assets/[a-z]+\.(?:css|js))", re.ASCII)


@dataclass
class Writer:
    """Where pages are written until all of them are there."""

    folder: Path
    names: list[str] = field(default_factory=list)
    n_bytes: int = 0

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        self.n_bytes += file.write_bytes(text.encode("utf-8", "replace"))
        self.names.append(name)


@contextlib.contextmanager
def site_in(folder: Path) -> Iterator[Writer]:
    """What is written inside takes its place in the folder at the end; a page of an earlier site that is no more goes.

    folder: is there, and claimed. Raises UsageError for one that holds something else, ElwError when it cannot be
    written.
    """
    before = _files_before(folder)
    try:
        with scratch_folder(folder, _SCRATCH) as scratch:
            writer = Writer(scratch)
            yield writer
            _put_in_place(folder, writer, before)
    except OSError as error:
        raise ElwError(
            f"The site cannot be written to {folder} ({error.strerror or error}): make room or name another folder."
        ) from error


def _files_before(folder: Path) -> set[str]:
    """Files of the site that is there, by its manifest; none in an empty folder."""
    manifest = folder / MANIFEST
    try:
        there = json.loads(manifest.read_text(encoding="utf-8"))
        is_ours = isinstance(there, dict) and there.get("kind") == KIND and isinstance(there.get("files"), list)
    except (OSError, ValueError):
        is_ours = False
    if is_ours:
        return {name for name in there["files"] if isinstance(name, str) and _OURS.fullmatch(name)}
    if others := sorted(entry.name for entry in folder.iterdir() if not _is_own_trace(entry.name)):
        raise UsageError(
            f"{folder} holds {others[0]} and is no site of elw export: name an empty folder, or one that is not there."
        )
    return set()


def _is_own_trace(name: str) -> bool:
    return name == LOCK or re.fullmatch(rf"\.{_SCRATCH}\.\d+\.\d+\.tmp", name, re.ASCII) is not None


def _put_in_place(folder: Path, writer: Writer, before: Collection[str]) -> None:
    """Move every file to its name, then take away those of before that are no more.

    The manifest names both while that is under way, so that a site that was cut short is one still.
    """
    names = set(writer.names)
    if foreign := sorted(name for name in names - set(before) if (folder / name).exists()):
        raise UsageError(f"{folder / foreign[0]} is there and no page of this site: move it, or name another folder.")
    for name in names:
        sync(writer.folder / name)
    _write_manifest(folder, writer, names | set(before))
    for name in writer.names:
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(writer.folder / name, folder / name)
    for name in set(before) - names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / name)
    for left in ("feature", "document", "assets"):
        with contextlib.suppress(OSError):  # it is not empty
            (folder / left).rmdir()
    _write_manifest(folder, writer, names)


def _write_manifest(folder: Path, writer: Writer, names: Collection[str]) -> None:
    text = json.dumps({"kind": KIND, "files": sorted(names)}, indent=0) + "\n"
    scratch = writer.folder / MANIFEST
    scratch.write_text(text, encoding="utf-8")
    sync(scratch)
    os.replace(scratch, folder / MANIFEST)
