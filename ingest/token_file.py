"""Token ids of documents, written once and had again by document and place: on disk, not in memory.

The file has no name, so that it is gone with the process, whatever ends that.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from energy_lens.errors import ElwError


class TokenFile:
    """Token ids, by the sha256 of a document: two bytes each where the vocabulary allows it, else four."""

    def __init__(self, vocabulary_size: int, folder: Path | None = None) -> None:
        """folder: where there is room; None: the system's folder for temporary files.

        Raises ElwError when no file can be made there.
        """
        self._folder = folder or Path(tempfile.gettempdir())
        self._dtype = np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.int32)
        self._places: dict[str, tuple[int, int]] = {}  #: where a document's ids begin, and how many there are
        self._n_written = 0
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._no_room(error) from error

    def n_tokens(self, sha256: str) -> int:
        """Tokens of a document."""
        return self._places[sha256][1]

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._places

    def append(self, sha256: str, ids: NDArray[np.int32]) -> None:
        """Add ids to the end of a document, which is new or the last one. Raises ElwError on a full disk."""
        first, n = self._places.get(sha256, (self._n_written, 0))
        assert first + n == self._n_written
        self._places[sha256] = first, n + len(ids)
        self._n_written += len(ids)
        data = memoryview(ids.astype(self._dtype).tobytes())
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._no_room(error) from error

    def read(self, sha256: str, first: int = 0, n: int | None = None) -> NDArray[np.int32]:
        """n ids of a document from its token `first` on; None: all that follow."""
        start, n_tokens = self._places[sha256]
        n = max(0, min(n_tokens - first, n_tokens if n is None else n))
        size = self._dtype.itemsize
        data = os.pread(self._file.fileno(), n * size, (start + first) * size)
        return np.frombuffer(data, dtype=self._dtype).astype(np.int32)

    def _no_room(self, error: OSError) -> ElwError:
        return ElwError(
            f"The token ids of the corpus cannot be written to {self._folder} ({error.strerror}): make room there, "
            "about as much as the text takes, and run the command again."
        )
