"""Sums by context and feature in, sums by document and feature out: what tests across documents are made of.

A document's contexts are spread over the rows of a group, and over groups. Only pairs of a document and a feature that
is active there are kept, so that time and memory go with the activations, however many documents or features there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.stream import ContextSums

Integers = NDArray[np.int64]


@dataclass
class DocumentSums:
    """Collects a group's rows at one layer."""

    energies: Sequence[str]
    _documents: list[Integers] = field(default_factory=list)
    _sums: list[ContextSums] = field(default_factory=list)

    def add(self, sums: ContextSums, documents: Integers) -> None:
        """Take in a row. documents: of its contexts [context]."""
        self._documents.append(documents[sums.contexts.numpy()])
        self._sums.append(sums)

    def columns(self, energy: str) -> dict[str, NDArray[np.generic]]:
        """Columns of feature_documents for one energy, by document and feature."""
        documents = np.concatenate(self._documents)
        features = np.concatenate([sums.features.numpy() for sums in self._sums])
        order = np.lexsort((documents, features))
        documents, features = documents[order], features[order]
        starts = np.flatnonzero((np.diff(documents, prepend=-1) != 0) | (np.diff(features, prepend=-1) != 0))

        def totals(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
            values = np.concatenate(parts)[order]
            return (np.add.reduceat(values, starts) if len(starts) else values).astype(np.float32)

        # Probes are of the model's own output, so their curvature is that of nll.
        curvature = [sums.a2h2.numpy() for sums in self._sums if sums.a2h2 is not None] if energy == "nll" else []
        return {
            "document_id": documents[starts].astype(np.int32),
            "feature": features[starts].astype(np.int32),
            "sum_s": totals([sums.energies[energy].s.numpy() for sums in self._sums]),
            "sum_g2": totals([sums.energies[energy].g2.numpy() for sums in self._sums]),
            "sum_norm2": totals([sums.energies[energy].norm2.numpy() for sums in self._sums]),
            "sum_a2h2": totals(curvature) if curvature else np.full(len(starts), np.nan, dtype=np.float32),
        }
