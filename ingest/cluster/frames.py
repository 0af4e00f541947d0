"""Tables in, the same tables out of another process: an Arrow stream each, compressed, as a worker returns them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedFrames:
    """Tables on their way."""

    streams: Mapping[str, NDArray[np.uint8]]  #: by table

    @classmethod
    def of(cls, frames: Mapping[str, pl.DataFrame]) -> PackedFrames:
        return cls({table: _packed(frame) for table, frame in frames.items()})

    @property
    def n_bytes(self) -> int:
        return sum(stream.nbytes for stream in self.streams.values())

    def unpacked(self) -> dict[str, pl.DataFrame]:
        return {table: pl.read_ipc_stream(io.BytesIO(stream.tobytes())) for table, stream in self.streams.items()}


def _packed(frame: pl.DataFrame) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    frame.write_ipc_stream(stream, compression="zstd")
    return np.frombuffer(stream.getbuffer(), dtype=np.uint8)
