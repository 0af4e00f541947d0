"""A layer's activations and decoder rows in, the features nearest to each out: by direction and by firing together."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.compiled import compiled
from energy_lens.ingest.statistics.activations import Slice
from energy_lens.warehouse.database import Warehouse

Integers = NDArray[np.int64]

#: Neighbours that are told, by each measure.
N_NEAREST = 10

#: Tokens at which both are active below which their PMI would be chance.
FEWEST_TOGETHER = 5

#: Decoder rows that are multiplied with all others at once.
BLOCK = 1_024

MEASURES = ("decoder_cosine", "jaccard", "pmi")


class FeatureNeighbours:
    """Gathers at which tokens the features of a layer fire, slice by slice."""

    def __init__(self, decoder: NDArray[np.floating], n_tokens: int, n_included: int) -> None:
        """decoder: rows [d_sae, d_model]. n_tokens: all of the run. n_included: those that statistics include."""
        self._decoder, self._n_tokens, self._n_included = decoder, n_tokens, n_included
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

    def add(self, rows: Slice) -> None:
        """Take in a slice; slices come in the order of their features."""
        self._parts.append(((rows.feature + rows.start).astype(np.int32), rows.place))

    def store(self, warehouse: Warehouse, run_id: int, layer: int) -> None:
        """Fill feature_neighbours of the layer. Call within a transaction."""
        feature = np.concatenate([feature for feature, _ in self._parts]) if self._parts else np.empty(0, np.int32)
        place = np.concatenate([place for _, place in self._parts]) if self._parts else np.empty(0, np.int32)
        frame = nearest(feature, place, self._decoder, self._n_tokens, self._n_included)
        if len(frame):
            warehouse.append("feature_neighbours", frame.with_columns(run_id=pl.lit(run_id), layer=pl.lit(layer)))


def nearest(
    feature: NDArray[np.int32], place: NDArray[np.int32], decoder: NDArray[np.floating], n_tokens: int, n_included: int
) -> pl.DataFrame:
    """Rows of feature_neighbours without run and layer, of features that fire.

    feature, place: [activation] sorted by feature; place is that of a token, below n_tokens.
    """
    fires, code = np.unique(feature, return_inverse=True)
    starts = np.searchsorted(code, np.arange(len(fires) + 1))
    by_token = np.argsort(place, kind="stable")
    tokens = np.searchsorted(place[by_token], np.arange(n_tokens + 1))
    active = code[by_token].astype(np.int64)
    cosine, cosine_of = _nearest_rows(decoder[fires])
    jaccard, jaccard_of, pmi, pmi_of = together(starts, place.astype(np.int64), tokens, active, n_included)
    frames = []
    for measure, neighbour, value in (
        ("decoder_cosine", cosine, cosine_of), ("jaccard", jaccard, jaccard_of), ("pmi", pmi, pmi_of),
    ):  # fmt: skip
        row, column = np.nonzero(neighbour >= 0)
        other = neighbour[row, column]
        both = shared(row, other, starts, place.astype(np.int64))
        frames.append(
            pl.DataFrame({
                "feature": fires[row].astype(np.int32), "measure": [measure] * len(row),
                "place": (column + 1).astype(np.int16), "neighbour": fires[other].astype(np.int32),
                "value": value[row, column].astype(np.float32), "n_both": both.astype(np.int32),
            })
        )  # fmt: skip
    return pl.concat(frames).sort("feature", pl.col("measure").cast(pl.Enum(MEASURES)), "place")


def _nearest_rows(rows: NDArray[np.floating]) -> tuple[Integers, NDArray[np.float64]]:
    """[row, N_NEAREST] the rows of the largest cosines with each, largest first, and these; −1 where there are none."""
    rows = rows.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1)
    n = len(rows)
    k = min(N_NEAREST, max(n - 1, 0))
    neighbours = np.full((n, N_NEAREST), -1, dtype=np.int64)
    cosines = np.zeros((n, N_NEAREST))
    for start in range(0, n if k else 0, BLOCK):
        block = unit[start : start + BLOCK] @ unit.T
        at = np.arange(len(block))
        block[at, start + at] = -np.inf  # itself
        chosen = np.argpartition(-block, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(block, chosen, 1)
        order = np.lexsort((chosen, -values), axis=1)
        neighbours[start + at, :k] = np.take_along_axis(chosen, order, 1)
        cosines[start + at, :k] = np.take_along_axis(values, order, 1)
    return neighbours, cosines


@compiled
def together(
    starts: Integers, place: Integers, tokens: Integers, active: Integers, n_included: int
) -> tuple[Integers, NDArray[np.float64], Integers, NDArray[np.float64]]:
    """Which features fire together most with each, by the Jaccard index and by PMI in bits [feature, N_NEAREST].

    starts: [feature + 1] bounds of features among activations. place: [activation] of its token. tokens: [token + 1]
    bounds of tokens among `active`, the features that are active there.
    """
    n = len(starts) - 1
    jaccard = np.full((n, N_NEAREST), -1, dtype=np.int64)
    jaccard_of = np.zeros((n, N_NEAREST))
    pmi = np.full((n, N_NEAREST), -1, dtype=np.int64)
    pmi_of = np.zeros((n, N_NEAREST))
    both = np.zeros(n, dtype=np.int64)
    met = np.zeros(n, dtype=np.int64)
    for feature in range(n):
        n_met = 0
        for i in range(starts[feature], starts[feature + 1]):
            for at in range(tokens[place[i]], tokens[place[i] + 1]):
                other = active[at]
                if both[other] == 0:
                    met[n_met] = other
                    n_met += 1
                both[other] += 1
        own = starts[feature + 1] - starts[feature]
        n_jaccard, n_pmi = 0, 0
        for at in range(n_met):
            other = met[at]
            count = both[other]
            both[other] = 0
            if other == feature:
                continue
            others = starts[other + 1] - starts[other]
            n_jaccard = _inserted(
                jaccard[feature], jaccard_of[feature], n_jaccard, other, count / (own + others - count)
            )
            if count >= FEWEST_TOGETHER:
                bits = np.log2(count * n_included / (own * others))
                n_pmi = _inserted(pmi[feature], pmi_of[feature], n_pmi, other, bits)
    return jaccard, jaccard_of, pmi, pmi_of


@compiled
def _inserted(kept: Integers, values: NDArray[np.float64], n: int, other: int, value: float) -> int:
    """Put a feature among those kept, of the largest values, of equal ones the first; returns how many there are."""
    full = n == len(kept)
    if full and (value < values[n - 1] or (value == values[n - 1] and other > kept[n - 1])):
        return n
    at = n - 1 if full else n
    while at > 0 and (values[at - 1] < value or (values[at - 1] == value and kept[at - 1] > other)):
        kept[at], values[at] = kept[at - 1], values[at - 1]
        at -= 1
    kept[at], values[at] = other, value
    return min(n + 1, len(kept))


@compiled
def shared(feature: Integers, other: Integers, starts: Integers, place: Integers) -> Integers:
    """[pair] at how many tokens both features of a pair are active; a feature's places ascend."""
    counts = np.zeros(len(feature), dtype=np.int64)
    for pair in range(len(feature)):
        i, i_end = starts[feature[pair]], starts[feature[pair] + 1]
        j, j_end = starts[other[pair]], starts[other[pair] + 1]
        while i < i_end and j < j_end:
            if place[i] == place[j]:
                counts[pair] += 1
                i += 1
                j += 1
            elif place[i] < place[j]:
                i += 1
            else:
                j += 1
    return counts
