"""Sums by feature and document in, sums by feature and stratum out.

Only pairs of a feature and a document in which it fires are held; a document without adds nothing to these sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from energy_lens.ingest.statistics.activations import Slice
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
    _members: csr_array  #: [key, pair]

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
        members = csr_array(
            (np.ones(len(code)), order.astype(np.int32), bounds.astype(np.int32)), shape=(len(codes), len(code))
        )
        of_pair = np.empty(len(code), dtype=np.int64)
        of_pair[order] = np.repeat(np.arange(len(codes)), np.diff(bounds))
        return cls(codes // len(partition.strata), codes % len(partition.strata), of_pair, members)

    def __len__(self) -> int:
        return len(self.feature)

    def pairs(self, key: int) -> NDArray[np.int32]:
        """Those of a key."""
        chosen: NDArray[np.int32] = self._members.indices[slice(*self._members.indptr[[key, key + 1]])]
        return chosen

    def sums(self, *columns: NDArray[np.number] | Mask) -> list[Floats]:
        """Σ over each key's pairs of columns [pair], each [key]."""
        stacked = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
        return list(np.ascontiguousarray((self._members @ stacked).T))
