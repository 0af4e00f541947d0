"""A name and frames in, Parquet files with a manifest out: whole or not at all, in a folder or an object store.

A place is a folder of this machine, or a URL such as s3://bucket/runs that polars itself reads and writes; credentials
are found as polars finds them, in the environment. Both are laid out alike:

    NAME/TABLE.parquet     rows of a table; in an object store TABLE-ATTEMPT.parquet, so that of two who write the same
                           thing neither touches what the other's manifest names
    NAME/manifest.json     one line of JSON that names these files; it is written last

A manifest is therefore what there is: files without one are what a killed process left, and nobody reads them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from energy_lens.errors import ElwError, UsageError
from energy_lens.warehouse.digests import content_sha256
from energy_lens.warehouse.files import check_replaceable, scratch_folder, sync
from energy_lens.warehouse.interrupts import FULL_DISK, is_full_disk

MANIFEST = "manifest.json"

#: What stands for no character of JSON, so that a line of it is read and written as it is.
_NO_SEPARATOR = "\x1f"

#: Schemes whose URLs polars writes to.
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "adl", "abfs", "abfss")

#: Names of files in a manifest, which must not lead elsewhere.
_FILE = re.compile(r"[\w-]+\.parquet")


class Place(Protocol):
    """Where files are staged."""

    name: str  #: as a user writes it: an absolute path, or a URL

    def below(self, part: str) -> Place:
        """The place within."""

    def write(self, part: str, frames: Mapping[str, pl.DataFrame], head: Mapping[str, Any]) -> dict[str, Any]:
        """Write tables below a name, and the manifest that tells of them; returns the manifest that holds there.

        That is another's where another one was quicker. Raises ElwError when it cannot be written.
        """

    def manifests(self, pattern: str) -> dict[str, dict[str, Any]]:
        """Manifests of the names that a pattern matches, * standing for anything but a slash.

        Raises ElwError when the place cannot be read; a place that is not there has none.
        """

    def read(self, part: str, file: str) -> pl.DataFrame:
        """The rows of a file. Raises DamagedError."""

    def exists(self) -> bool:
        """Whether there is such a place at all; of an object store one cannot tell, and it is taken to be there."""

    def check(self) -> None:
        """Raises ElwError where nothing can be written, as far as that can be told before; makes nothing."""


class DamagedError(ElwError):
    """A staged file is missing, cut short or another one than its manifest says."""


def place_at(name: str) -> Place:
    """The place that a word names. Raises UsageError for a word that can be none."""
    if "\0" in name or any(ord(character) < 32 for character in name) or not name.strip():
        raise UsageError(f"{name[:80]!r} can be no folder or URL: name another one.")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", name)
    if scheme is None or scheme[1].lower() == "file":
        return Folder(Path(os.path.abspath(os.path.expanduser(name[len("file://") :] if scheme else name))))
    if scheme[1].lower() not in SCHEMES:
        raise UsageError(
            f"{name[:80]} is of no object store that can be written to: {', '.join(f'{s}://' for s in SCHEMES)} are, "
            "and folders."
        )
    return ObjectStore(name.rstrip("/"))


def is_url(name: str) -> bool:
    """Whether a word names something of an object store."""
    return "://" in name


class Folder:
    """A folder of this machine, or one that machines share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def below(self, part: str) -> Folder:
        return Folder(self.path / part)

    def write(self, part: str, frames: Mapping[str, pl.DataFrame], head: Mapping[str, Any]) -> dict[str, Any]:
        """As in Place; the folder comes to its name in one step, when all that is in it is on the disk."""
        target = self.path / part
        # By machine too: whether a process of another one is still at work cannot be told here.
        scratch_name = f"{target.name}.{re.sub(r'[^A-Za-z0-9-]', '-', socket.gethostname())[:60]}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with scratch_folder(target.parent, scratch_name) as scratch:
                files = []
                for table, frame in frames.items():
                    path = scratch / f"{table}.parquet"
                    frame.write_parquet(path, compression="zstd")
                    sync(path)
                    files.append(_told(table, path.name, frame, path.stat().st_size))
                manifest = {**head, "files": files}
                (scratch / MANIFEST).write_text(_as_line(manifest), encoding="utf-8")
                sync(scratch / MANIFEST)
                sync(scratch)
                with contextlib.suppress(FileExistsError):
                    _take_name(scratch, target)
                    with contextlib.suppress(OSError):  # some file systems sync no folders
                        sync(target.parent)
                    return manifest
        except (OSError, pl.exceptions.PolarsError) as error:
            if is_full_disk(error):
                raise ElwError(f"{self.name}: {FULL_DISK}") from error
            reason = getattr(error, "strerror", None) or _reason(error)
            raise ElwError(
                f"{target} cannot be written ({reason}): see who may write there, or name another."
            ) from error
        return self._manifest_of(target)  # another one was quicker

    def _manifest_of(self, target: Path) -> dict[str, Any]:
        found = self.manifests(str(target.relative_to(self.path)))
        if not found:
            raise ElwError(f"{target} is there and no group of elw: move it away.")
        return next(iter(found.values()))

    def manifests(self, pattern: str) -> dict[str, dict[str, Any]]:
        found = {}
        try:
            for path in sorted(self.path.glob(f"{pattern}/{MANIFEST}")):
                part = path.parent.relative_to(self.path).as_posix()
                if not any(piece.startswith(".") for piece in part.split("/")):  # what is still being written
                    found[part] = _manifest(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ElwError(f"{self.name} cannot be read ({_reason(error)}): see who may read there.") from error
        return found

    def read(self, part: str, file: str) -> pl.DataFrame:
        path = self.path / part / file
        try:
            # Read first: of a file that another machine cuts short while it is mapped there would be no error.
            return pl.read_parquet(io.BytesIO(path.read_bytes()), hive_partitioning=False)
        except FileNotFoundError as error:
            raise DamagedError(f"{path}, which its manifest names, is missing: {_again(path.parent)}") from error
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DamagedError(f"{path} is damaged ({_reason(error)}): {_again(path.parent)}") from error

    def exists(self) -> bool:
        return self.path.is_dir()

    def check(self) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.stat(self.path)  # a name that is too long, or lies below a file
            # Nothing is made yet: what the work is refused for should leave no folder behind.
            there = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
            if not there.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            check_replaceable(there / MANIFEST)
        except OSError as error:
            raise ElwError(
                f"{self.name} cannot be written ({_reason(error)}): see who may write there, or name another folder."
            ) from error


class ObjectStore:
    """What lies below a URL, as polars reads and writes it."""

    def __init__(self, url: str) -> None:
        self.name = url

    def below(self, part: str) -> ObjectStore:
        return ObjectStore(f"{self.name}/{part}")

    def write(self, part: str, frames: Mapping[str, pl.DataFrame], head: Mapping[str, Any]) -> dict[str, Any]:
        attempt = uuid.uuid4().hex[:12]
        files = []
        try:
            for table, frame in frames.items():
                file = f"{table}-{attempt}.parquet"
                frame.lazy().sink_parquet(f"{self.name}/{part}/{file}", compression="zstd")
                files.append(_told(table, file, frame, None))
            manifest = {**head, "files": files}
            line = pl.LazyFrame({"line": [_as_line(manifest).rstrip("\n")]})
            line.sink_csv(
                f"{self.name}/{part}/{MANIFEST}", include_header=False, separator=_NO_SEPARATOR, quote_style="never"
            )
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ElwError(
                f"{self.name} cannot be written ({_reason(error)}): see that it is there and that the environment has "
                "its credentials."
            ) from error
        return manifest

    def manifests(self, pattern: str) -> dict[str, dict[str, Any]]:
        try:
            rows = (
                pl.scan_csv(
                    f"{self.name}/{pattern}/{MANIFEST}", has_header=False, separator=_NO_SEPARATOR, quote_char=None,
                    infer_schema=False, new_columns=["line"], include_file_paths="path",
                )
                .collect()
                .iter_rows()
            )  # fmt: skip
        except (OSError, pl.exceptions.PolarsError) as error:
            if isinstance(error, FileNotFoundError) or "expanded paths were empty" in str(error):
                return {}
            raise ElwError(
                f"{self.name} cannot be read ({_reason(error)}): see that it is there and that the environment has its "
                "credentials."
            ) from error
        inside = self.name.partition("://")[2]
        return {
            path.partition("://")[2].removeprefix(inside).strip("/").rpartition("/")[0]: _manifest(line, path)
            for line, path in rows
        }

    def read(self, part: str, file: str) -> pl.DataFrame:
        url = f"{self.name}/{part}/{file}"
        try:
            return pl.read_parquet(url, hive_partitioning=False)
        except FileNotFoundError as error:
            raise DamagedError(
                f"{url}, which its manifest names, is missing: {_again(f'{self.name}/{part}')}"
            ) from error
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DamagedError(f"{url} is damaged ({_reason(error)}): {_again(f'{self.name}/{part}')}") from error

    def exists(self) -> bool:
        return True

    def check(self) -> None:
        self.manifests("*")


def read_tables(place: Place, part: str, manifest: Mapping[str, Any]) -> Iterator[tuple[str, pl.DataFrame]]:
    """The tables that a manifest names, each as it was written. Raises DamagedError for one that is not."""
    for told in manifest["files"]:
        yield told["table"], read_table(place, part, told)


def read_table(place: Place, part: str, told: Mapping[str, Any]) -> pl.DataFrame:
    """The rows of a file as its manifest tells of it. Raises DamagedError where it is another one."""
    frame = place.read(part, told["path"])
    if len(frame) != told["rows"] or content_sha256(frame) != told["sha256"]:
        path = f"{place.name}/{part}"
        raise DamagedError(f"{path}/{told['path']} does not hold the rows that its manifest tells of: {_again(path)}")
    return frame


def _told(table: str, file: str, frame: pl.DataFrame, n_bytes: int | None) -> dict[str, Any]:
    """A file as the manifest has it; sha256: of the rows, so that it holds for copies that are packed otherwise."""
    return {"table": table, "path": file, "rows": len(frame), "bytes": n_bytes, "sha256": content_sha256(frame)}


def _as_line(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest) + "\n"


def _manifest(text: str, path: str) -> dict[str, Any]:
    """A manifest of ours. Raises DamagedError for anything else."""
    try:
        told = json.loads(text)
        files = told["files"]
        if told["made_by"] == "elw" and all(
            _FILE.fullmatch(file["path"]) and {"table", "rows", "sha256"} <= file.keys() for file in files
        ):
            return dict(told)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise DamagedError(f"{path} is no manifest of staged rows: remove it and what lies beside it.")


def _take_name(scratch: Path, target: Path) -> None:
    """Give a folder its name, which must not be taken. Raises FileExistsError when it is."""
    try:
        scratch.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(error.errno, "it is there already") from error
        raise


def _again(folder: Path | str) -> str:
    """How to have again what is damaged."""
    return f"remove {folder}, and the same elw ingest stages it again."


def _reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:160]
