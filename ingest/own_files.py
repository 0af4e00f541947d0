"""A file below a corpus folder in, whether elw wrote it out: such a file is never text to ingest.

Warehouses and reports lie where the work is done, which is often the folder of texts. They are known by what they hold
where that is possible, for they may have any name: a warehouse with its lock, log and temporary files, a report with
its figures, an SAE.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

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
        self._reported: dict[Path, bool] = {}

    def __contains__(self, file: Path) -> bool:
        return _is_of_warehouse(file) or _is_report(file) or self._is_figure(file) or _is_of_sae(file)

    def _is_figure(self, file: Path) -> bool:
        """Whether it is in the folder of figures beside a report."""
        if file.suffix != ".svg" or file.parent.name != "figures":
            return False
        folder = file.parent.parent
        if folder not in self._reported:
            self._reported[folder] = any(_is_report(beside) for beside in _files_in(folder))
        return self._reported[folder]


def _is_of_warehouse(file: Path) -> bool:
    """A DuckDB file, whatever its name; the log beside it, the lock of its ingest, what DuckDB spills."""
    name, start = file.name, _beginning(file)
    if start[8:12] == b"DUCK" and b"\0" in start[12:20]:  # behind a checksum, before the storage version
        return True
    if name.endswith(".wal"):
        return b"\0" in start
    if name.endswith(".lock"):
        return re.fullmatch(rb"\s*\d{1,10}\s*", start) is not None  # a lock says which process holds it
    return file.parent.name.endswith(".tmp") and name.startswith("duckdb_temp")


def _is_report(file: Path) -> bool:
    begins = _REPORTS.get(file.suffix)
    return begins is not None and begins(_beginning(file))


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


def _beginning(file: Path) -> bytes:
    """The first bytes of a file; none of one that cannot be read, which is told where it is read as text."""
    try:
        with open(file, "rb") as opened:
            return opened.read(BEGINNING)
    except OSError:
        return b""
