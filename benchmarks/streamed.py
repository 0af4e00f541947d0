"""A synthetic sample in, p of every test out; what `elw` tests comes from its own stream and its own finish functions.

`LayerStatistics` takes the rows in, with shared directions, `DocumentSums` adds up by document, sums along directions
go through the byte that they are stored in, and `direction_test`, `mean_test` and `interval` make p of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from association import Interval, compare, stored_interval, sum_by
from numpy.typing import NDArray
from synthetic import LANES, Sample

from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.ingest.statistics.across_documents import TokenSums, mean_test
from energy_lens.ingest.statistics.directions import (
    DecoderRows,
    Directions,
    Sizes,
    choose_references,
    direction_test,
    packed,
    unpacked,
)
from energy_lens.ingest.statistics.documents import DocumentSums
from energy_lens.ingest.statistics.significance import two_sided_p
from energy_lens.ingest.statistics.stream import LayerRow, LayerStatistics

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Mask = NDArray[np.bool_]

ENERGY = "noise"


class Streamed(NamedTuple):
    """What the stream keeps of a sample."""

    columns: dict[str, Floats]  #: of feature_moments, by feature
    counted: Mask  #: [context, position]
    by_document: dict[str, Floats]  #: of feature_documents, 0 where a feature is not active [document, feature]
    features: NDArray[np.int64]  #: active at counted tokens [n]
    along: Floats  #: their sums along the shared directions, as stored [n, direction]
    directions: Directions


def streamed(sample: Sample, seed: int = 0) -> Streamed:
    """seed: of the shared directions."""
    decoder = torch.from_numpy(sample.decoder)
    n_features, d_model = decoder.shape
    sae = SparseAutoencoder(0, n_features, decoder.T.clone(), torch.zeros(n_features), decoder, torch.zeros(d_model))
    directions = Directions.of(sae, choose_references(sae, seed), seed)
    collected = LayerStatistics(sae, [ENERGY], directions)
    by_document, counted = DocumentSums([ENERGY]), []
    included, documents = sample.contexts.included, sample.contexts.documents
    n_slots = int((sample.a > 0).sum(-1).max())
    for first in range(0, len(sample.a), LANES):
        row = slice(first, first + LANES)
        values, indices = torch.from_numpy(sample.a[row]).topk(n_slots)
        gradients = {ENERGY: torch.from_numpy(sample.gradients[row])}
        found = collected.add(LayerRow(torch.from_numpy(included[row]), SparseActivations(values, indices), gradients))
        by_document.add(found.contexts, documents[row])
        counted.append(found.counted.numpy())
    sums = by_document.columns(ENERGY)
    dense = {name: np.zeros((int(documents.max()) + 1, n_features)) for name in ("sum_s", "sum_g2", "sum_norm2")}
    for name, values in dense.items():
        values[sums["document_id"], sums["feature"]] = sums[name]
    features, along = collected.along(ENERGY)
    columns = {name: values.astype(np.float64) for name, values in collected.columns(ENERGY).items()}
    return Streamed(columns, np.concatenate(counted), dense, features, unpacked(*packed(along)), directions)


def p_values(sample: Sample, seed: int = 0) -> dict[str, Floats]:
    """p of every test by feature, of the negative control and of a reference row in the feature's place too."""
    kept = streamed(sample, seed)
    columns = kept.columns
    g, documents = sample.g, sample.contexts.documents
    p = compare(sample.a, g, np.zeros_like(g), kept.counted, documents)
    p["within"] = two_sided_p(columns["sum_s"] / np.sqrt(columns["sum_s2"]))
    p["z_null"] = two_sided_p(columns["null_s"] / np.sqrt(columns["null_s2"]))
    s = kept.by_document["sum_s"]
    p["z_documents"] = mean_test(s, s != 0)
    probes = kept.directions.probes.numpy().astype(np.float64)
    compared = DecoderRows(sample.decoder, kept.directions.references, probes)
    sizes = Sizes(compared, columns["sum_s"], columns["sum_gc2"])
    found = direction_test(sizes, kept.features, kept.along)
    for name, values in (("t_specific", found.p), ("reference", found.p_reference)):
        p[name] = np.full(len(sample.decoder), np.nan)
        p[name][kept.features] = values
    p["interval"] = interval_of(sample, kept).p
    return p


def token_sums(sample: Sample) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """n [document], Σa, Σa², Σg and Σag [document, feature] over included tokens."""
    included, documents = sample.contexts.included.astype(np.float32), sample.contexts.documents
    g = sample.g
    of_contexts = [
        included.sum(1)[:, None], sample.a.sum(1), np.einsum("ctf,ctf->cf", sample.a, sample.a),
        np.einsum("ctf,ct->cf", g, included), np.einsum("ctf,ctf->cf", sample.a, g),
    ]  # fmt: skip
    n, *others = (sum_by(documents, x.astype(np.float64)) for x in of_contexts)
    return n[:, 0], others[0], others[1], others[2], others[3]


def interval_of(sample: Sample, kept: Streamed) -> Interval:
    """The interval of the correlation over all included tokens."""
    n, a, a2, g, ag = token_sums(sample)
    squares = (sample.gradients.astype(np.float64) ** 2).sum(2) * sample.contexts.included
    norm2 = sum_by(sample.contexts.documents, squares.sum(1)[:, None])[:, 0]
    sums = TokenSums(n, norm2, a, a2, g, ag, kept.by_document["sum_g2"], kept.by_document["sum_norm2"])
    return stored_interval(sums, kept.columns["sum_g2"])


def totals(sample: Sample) -> Floats:
    """n, Σa, Σa², Σg, Σag and Σg² over included tokens [sum, feature]; they add up over samples."""
    n, *others = token_sums(sample)
    g2 = np.einsum("ctf,ct->f", sample.g**2, sample.contexts.included.astype(np.float32))
    return np.stack([np.full(len(g2), n.sum()), *(x.sum(0) for x in others), g2])


def correlation(sums: Floats) -> Floats:
    """Pearson's r of a and g from `totals`, by feature."""
    a, a2, g, ag, g2 = sums[1:] / sums[0]
    r: Floats = (ag - a * g) / np.sqrt((a2 - a**2) * (g2 - g**2))
    return r
