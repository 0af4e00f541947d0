"""A folder that an export fills: files made aside, put in place together, and told of in manifest.json.

manifest.json says what made the folder, of which run, and every file with its size and SHA-256. It is how a later
export knows what it may replace, and how a reader can tell that all is there as it was written.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from energy_lens.errors import ElwError, UsageError
from energy_lens.version import __version__
from energy_lens.warehouse.files import scratch_folder, sync, whole
from energy_lens.warehouse.locks import LOCK, claimed_folder

MANIFEST = "manifest.json"

#: As Neuronpedia's own writer has it; 9 takes three times as long for a fortieth less (measured on its activations).
GZIP_LEVEL = 5

#: Name of the scratch folder inside the output.
_SCRATCH = "export"


@dataclass
class Folder:
    """The files of an export while they are made. Names are relative, with slashes."""

    root: Path
    about: dict[str, Any] = field(default_factory=dict)  #: further entries of the manifest
    notes: list[str] = field(default_factory=list)  #: what was left out, and why
    names: list[str] = field(default_factory=list)  #: in the order in which they were asked for

    def file(self, name: str) -> Path:
        """Where to write a file of that name; its folder is there."""
        self.names.append(name)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, content: Any) -> None:
        self.file(name).write_text(as_json(content) + "\n", encoding="utf-8", newline="\n")

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write objects as JSON lines, compressed if the name ends in .gz."""
        with contextlib.ExitStack() as stack:
            stream: Any = stack.enter_context(self.file(name).open("wb"))
            if name.endswith(".gz"):
                # No time and no name inside, so that the same rows are the same bytes.
                stream = stack.enter_context(
                    gzip.GzipFile(filename="", fileobj=stream, mode="wb", compresslevel=GZIP_LEVEL, mtime=0)
                )
            for row in rows:
                stream.write(as_json(row).encode() + b"\n")


def as_json(content: Any) -> str:
    """JSON on one line in which no \\u0000 stands, whatever the texts hold.

    PostgreSQL takes no NUL, and Neuronpedia's importer puts a space for every \\u0000 that it sees, even for one that
    is a backslash and a word, which breaks the line. So NUL becomes ␀, and such a backslash is written as \\u005c.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ESCAPE.sub(_without_nul, text) if "\\u0000" in text else text


#: An escape of JSON, and what may follow a backslash that is one.
_ESCAPE = re.compile(r"\\(?:u0000|(\\)(?=u0000)|.)")


def _without_nul(escape: re.Match[str]) -> str:
    if escape[0] == "\\u0000":
        return "␀"
    return "\\u005c" if escape[1] else escape[0]


# ------------------------------------------------------------------------------------------------ in and out of place


@contextlib.contextmanager
def export_folder(output: Path, form: str, run: Mapping[str, Any]) -> Iterator[Folder]:
    """Files to be put into the folder `output` when all of them are made; an earlier export there is replaced.

    form: of the export; run: facts of its run, both for the manifest.
    Raises UsageError for an output that is no folder, is being written, cannot be written, or holds what no export
    wrote; ElwError when the disk does not take the files.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file, not a folder: name a folder for the export.")
    with claimed_folder(output, "elw export"):
        earlier = _earlier_files(output)
        try:
            with scratch_folder(output, _SCRATCH) as scratch:
                folder = Folder(scratch)
                yield folder
                manifest = {
                    "made_by": "elw", "elw_version": __version__, "format": form, "is_complete": True, "run": dict(run),
                    "notes": folder.notes, **folder.about,
                    "files": [described(scratch, name) for name in sorted(folder.names)],
                }  # fmt: skip
                _put_in_place(output, folder, manifest, earlier)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ElwError(
                f"The export cannot be written to {output} ({reason}): make room or name another folder."
            ) from error


def described(root: Path, name: str) -> dict[str, Any]:
    """A file as the manifest has it."""
    with (root / name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": name, "bytes": (root / name).stat().st_size, "sha256": digest}


def _earlier_files(output: Path) -> set[str]:
    """Files of an earlier export in the folder. Raises UsageError when there are others."""
    told = _told(output / MANIFEST)
    there = set()
    for path in output.rglob("*"):
        relative = path.relative_to(output)
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder or path == output / LOCK or relative.parts[0].startswith(f".{_SCRATCH}."):
            continue
        if (name := relative.as_posix()) not in told:
            raise UsageError(
                f"{output} holds {name!r}, which no export wrote: name an empty folder, or that of an earlier export."
            )
        there.add(name)
    return there


def _told(manifest: Path) -> set[str]:
    """Files that the manifest of an earlier export tells of, itself among them; none if it is somebody else's."""
    try:
        read = json.loads(manifest.read_text(encoding="utf-8"))
        if read["made_by"] != "elw":
            return set()
        return {MANIFEST, *(file["path"] for file in read["files"])}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _put_in_place(output: Path, folder: Folder, manifest: Mapping[str, Any], earlier: set[str]) -> None:
    """Move the files; whenever this is cut short, the manifest knows both the old and the new ones as an export's."""
    for name in folder.names:
        sync(folder.root / name)
    known = [{"path": name} for name in sorted({*earlier, *folder.names} - {MANIFEST})]
    _write_manifest(output, {**manifest, "is_complete": False, "files": known})
    for name in sorted(earlier - {MANIFEST, *folder.names}):
        (output / name).unlink()
        _remove_empty(output, PurePosixPath(name).parents)
    for name in folder.names:
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder.root / name, target)
    _write_manifest(output, manifest)


def _remove_empty(output: Path, parents: Iterable[PurePosixPath]) -> None:
    with contextlib.suppress(OSError):
        for parent in parents:
            if parent.parts:
                (output / parent).rmdir()


def _write_manifest(output: Path, manifest: Mapping[str, Any]) -> None:
    with whole(output / MANIFEST) as (scratch,):
        text = json.dumps(manifest, ensure_ascii=False, indent=1)
        scratch.write_text(text + "\n", encoding="utf-8", newline="\n")
