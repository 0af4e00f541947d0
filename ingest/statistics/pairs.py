"""Sums by feature and document in, sums by feature and stratum out.

Only pairs of a feature and a document in which it fires are held; a document without adds nothing to these sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.kernels import placed_sums
from energy_lens.ingest.statistics.strata import Mask, Partition

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Keys:
    """Features of a slice in strata of a partition: all of them where the stratum is all documents, else those that
    fire there."""

    feature: Integers  #: [key] counted from the slice's first
    stratum: Integers  #: [key]
    of_pair: Integers  #: [pair] its key

    @classmethod
    def of(cls, rows: Slice, partition: Partition) -> Keys:
        code = rows.pair_feature * len(partition.strata) + partition.of_documents[rows.pair_document]
        order = np.argsort(code, kind="stable")
        if partition.is_whole:
            codes = np.arange(rows.n_features)
            bounds = np.searchsorted(code[order], np.arange(rows.n_features + 1))
        else:
            starts = np.flatnonzero(np.diff(code[order], prepend=-1))
            codes, bounds = code[order][starts], np.append(starts, len(code))
        of_pair = np.empty(len(code), dtype=np.int64)
        of_pair[order] = np.repeat(np.arange(len(codes)), np.diff(bounds))
        return cls(codes // len(partition.strata), codes % len(partition.strata), of_pair)

    def __len__(self) -> int:
        return len(self.feature)

    def sums(self, *columns: NDArray[np.number] | Mask) -> list[Floats]:
        """Σ over each key's pairs of columns [pair], each [key]."""
        return list(placed_sums(self.of_pair, np.stack(columns).astype(np.float64, copy=False), len(self)))
