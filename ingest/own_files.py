"""A file below a corpus folder in, whether elw wrote it out: such a file is never text to ingest.

Warehouses and reports lie where the work is done, which is often the folder of texts. They are known by what they hold
where that is possible, for they may have any name: a warehouse with its lock, log and temporary files, a report with
its figures, an SAE.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from energy_lens.warehouse.export_folder import exported_files
from energy_lens.warehouse.locks import is_record

#: Bytes of a file's beginning that are looked at.
BEGINNING = 1024

#: How each file of a report begins, by its suffix (`reports/templates`, `reports/render.py`).
_REPORTS: dict[str, Callable[[bytes], bool]] = {
    ".md": lambda text: text.lstrip().startswith(b"# Energy and features in "),
    ".html": lambda text: b"<title>Energy and features in " in text,
    ".json": lambda text: text.startswith(b'{"queries":[{"name":"'),
}


class OwnFiles:
    """Tells files that elw wrote from texts, looking into each folder once."""

    def __init__(self) -> None:
        self._open = _open_files()
        self._reported: dict[Path, bool] = {}
        self._exported: dict[Path, frozenset[str]] = {}  #: what an export in a folder is made of

    def __contains__(self, file: Path) -> bool:
        if self._is_exported(file):
            return True
        start = self._beginning(file)
        return _is_of_warehouse(file, start) or _is_report(file, start) or self._is_figure(file) or _is_of_sae(file)

    def _is_exported(self, file: Path) -> bool:
        """Whether the manifest of an export, in its folder or one above, names it."""
        for folder in (file.parent, *file.parent.parents):
            if folder not in self._exported:
                self._exported[folder] = exported_files(folder)
            if (named := self._exported[folder]) and file.relative_to(folder).as_posix() in named:
                return True
        return False

    def _is_figure(self, file: Path) -> bool:
        """Whether it is in the folder of figures beside a report."""
        if file.suffix != ".svg" or file.parent.name != "figures":
            return False
        folder = file.parent.parent
        if folder not in self._reported:
            beside = [path for path in _files_in(folder) if path.suffix in _REPORTS]
            self._reported[folder] = any(_is_report(path, self._beginning(path)) for path in beside)
        return self._reported[folder]

    def _beginning(self, file: Path) -> bytes:
        """The first bytes of a file; none of one that cannot be read, which is told where it is read as text.

        A file that this process has open is read through what it has open: to open it again and close that would end
        the lock by which DuckDB keeps other processes from a warehouse (POSIX, fcntl: "all locks are released").
        """
        try:
            status = os.stat(file)
            if (descriptor := self._open.get((status.st_dev, status.st_ino))) is not None:
                with contextlib.suppress(OSError):  # a log is open to be written alone, and has no lock
                    return os.pread(descriptor, BEGINNING, 0)
            with open(file, "rb") as opened:
                return opened.read(BEGINNING)
        except OSError:
            return b""


def _open_files() -> dict[tuple[int, int], int]:
    """{(device, inode): descriptor} of the regular files that this process has open."""
    found = {}
    try:
        descriptors = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return {}
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # that of the listing itself is closed by now
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                found[status.st_dev, status.st_ino] = descriptor
    return found


def _is_of_warehouse(file: Path, start: bytes) -> bool:
    """A DuckDB file, whatever its name; the log beside it, the lock of its ingest, what DuckDB spills."""
    name = file.name
    if start[8:12] == b"DUCK" and b"\0" in start[12:20]:  # behind a checksum, before the storage version
        return True
    if name.endswith(".wal"):
        return b"\0" in start
    if name.endswith(".lock"):
        return is_record(start)
    return file.parent.name.endswith(".tmp") and name.startswith("duckdb_temp")


def _is_report(file: Path, start: bytes) -> bool:
    begins = _REPORTS.get(file.suffix)
    return begins is not None and begins(start)


def _is_of_sae(file: Path) -> bool:
    """Weights and configuration, which lie in one folder."""
    if file.name == "cfg.json":
        return any(beside.suffix == ".safetensors" for beside in _files_in(file.parent))
    return file.suffix == ".safetensors" and file.with_name("cfg.json").is_file()


def _files_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return []
