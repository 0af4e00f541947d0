"""A folder that an export fills: files made aside, put in place together, and told of in manifest.json.

manifest.json says what made the folder, of which run, and every file with its size and SHA-256. It is how a later
export knows what it may replace, how an ingest knows what is no text, and how a reader can tell that all is there as it
was written.

Whatever else lies in the folder is somebody's: it stays, and an export that would write over it is refused. So is one
into a folder that holds files and no manifest. Of an earlier export goes what the new one does not write again, unless
it was changed since.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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

    @property
    def n_bytes(self) -> int:
        """Of all files so far."""
        return sum((self.root / name).stat().st_size for name in self.names)

    def write_text(self, name: str, text: str) -> None:
        """Write a text as UTF-8, with ? for half a surrogate pair, of which UTF-8 has none."""
        self.file(name).write_bytes(text.encode("utf-8", "replace"))

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
def export_folder(output: Path, form: str, run: Mapping[str, Any], *, adds: bool = False) -> Iterator[Folder]:
    """Files to be put into the folder `output` when all of them are made, in place of those of an earlier export.

    form: of the export; run: facts of its run, both for the manifest. adds: files of an earlier export of that form
    stay beside the new ones.
    Raises UsageError for an output that is no folder, is being written, cannot be written, or holds what no export
    wrote; ElwError when the disk does not take the files.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file, not a folder: name a folder for the export.")
    with claimed_folder(output, "elw export", "name another folder"):
        earlier = _manifest_in(output)
        if not earlier:
            _check_empty(output)
        try:
            with scratch_folder(output, _SCRATCH) as scratch:
                folder = Folder(scratch)
                yield folder
                manifest = {
                    "made_by": "elw", "elw_version": __version__, "format": form, "is_complete": True, "run": dict(run),
                    "notes": folder.notes, **folder.about,
                    "files": [described(scratch, name) for name in sorted(folder.names)],
                }  # fmt: skip
                _put_in_place(output, folder, manifest, earlier, adds and earlier.get("format") == form)
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


def exported_files(folder: Path) -> frozenset[str]:
    """What an export wrote into a folder, by its manifest, which is among it; nothing where there is no such one."""
    manifest = _manifest_in(folder)
    return frozenset({MANIFEST, *(file["path"] for file in manifest["files"])} if manifest else ())


def _manifest_in(folder: Path) -> dict[str, Any]:
    """The manifest of an export in a folder; empty where there is none, or somebody else's."""
    try:
        read = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_ours = read["made_by"] == "elw" and all(isinstance(file["path"], str) for file in read["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return read if is_ours else {}


def _check_empty(output: Path) -> None:
    """Raises UsageError for a folder in which there is more than the traces of an export that was killed."""
    for path in sorted(output.iterdir()):
        if path.name != LOCK and not path.name.startswith(f".{_SCRATCH}."):
            raise UsageError(
                f"{output} holds {path.name!r}, which no export wrote: name an empty folder, or that of an earlier "
                "export."
            )


def _put_in_place(
    output: Path, folder: Folder, manifest: Mapping[str, Any], earlier: Mapping[str, Any], adds: bool
) -> None:
    """Move the files; whenever this is cut short, the manifest knows both the old and the new ones as an export's."""
    before, names = earlier.get("files", []), set(folder.names)
    others = [file for file in before if file["path"] not in names and _is_unchanged(output, file)]
    _check_free(output, folder.names, {file["path"] for file in before})
    for name in folder.names:
        sync(folder.root / name)
    _write_manifest(output, {**manifest, "is_complete": False, "files": [*before, *manifest["files"]]})
    if not adds:
        for file in others:
            (output / file["path"]).unlink()
            _remove_empty(output, PurePosixPath(file["path"]).parents)
    for name in folder.names:
        target = output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder.root / name, target)
    files = sorted([*manifest["files"], *others], key=lambda file: file["path"]) if adds else manifest["files"]
    _write_manifest(output, {**manifest, "files": files})


def _is_unchanged(output: Path, file: Mapping[str, Any]) -> bool:
    """Whether a file of a manifest is in its folder, and no link leads out of it, as it was written."""
    path = output / file["path"]
    try:
        inside = Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(output))
        return inside and not path.is_symlink() and described(output, file["path"]) == file
    except (OSError, ValueError):
        return False


def _check_free(output: Path, names: Sequence[str], ours: Collection[str]) -> None:
    """Raises UsageError where one of the names, or a folder that it is to be in, is somebody else's file or folder."""
    for name in names:
        for place in (PurePosixPath(name), *PurePosixPath(name).parents):
            path = output / place
            is_file = os.path.lexists(path) and not path.is_dir()
            if (is_file and place.as_posix() not in ours) or (path.is_dir() and place.as_posix() == name):
                raise UsageError(f"{path} is there, and no export wrote it: move it, or name another folder.")


def _remove_empty(output: Path, parents: Iterable[PurePosixPath]) -> None:
    with contextlib.suppress(OSError):
        for parent in parents:
            if parent.parts:
                (output / parent).rmdir()


def _write_manifest(output: Path, manifest: Mapping[str, Any]) -> None:
    with whole(output / MANIFEST) as (scratch,):
        text = json.dumps(manifest, ensure_ascii=False, indent=1)
        scratch.write_text(text + "\n", encoding="utf-8", newline="\n")
