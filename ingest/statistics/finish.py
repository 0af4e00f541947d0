"""Finish: stored rows and stream sums in, `feature_statistics`, `histogram_cells` and `feature_classes` out, at once.

Sums come from SQL, by feature and document; here they are laid out densely over documents, a chunk of features at a
time, and combined for all documents, each category, and each half. What is left, from sums to scores and intervals,
is algebra in the view `efas`; p and q are computed here since DuckDB has no normal distribution.

Source of the false discovery rate: Benjamini and Hochberg 1995.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.statistics.across_documents import TokenSums, enough, interval, mean_test
from energy_lens.ingest.statistics.directions import (
    Sizes,
    direction_test,
    random_probes,
    read_references,
    unpacked,
)
from energy_lens.ingest.statistics.feature_classes import class_tokens, fill_feature_classes
from energy_lens.ingest.statistics.significance import (
    MIN_TEST_CONTEXTS,
    MIN_TEST_DOCUMENTS,
    MIN_TEST_TOKENS,
    known_q,
    t_quantile,
    two_sided_p,
)
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.runs import gradient_column

Floats = NDArray[np.float64]

#: The name of all categories, or of both halves, together.
ALL, BOTH = "all", "AB"

#: Numbers in one documents x features array.
CHUNK_NUMBERS = 4_000_000


@dataclass
class _Stratum:
    """A combination of category and half, with its documents."""

    category: str
    half: str
    documents: NDArray[np.bool_]


@dataclass
class _RunLayout:
    run_id: int
    context_length: int
    seed: int
    layers: list[int]
    energies: list[str]
    document_ids: NDArray[np.int64]
    strata: list[_Stratum]


def finish(open_warehouse: Callable[[], Warehouse], run_id: int, decoders: Mapping[int, Tensor]) -> None:
    """Fill feature_statistics, histogram_cells and feature_classes for a run.

    decoders: layer: decoder rows [d_sae, d_model]. Everything or nothing is replaced.
    """
    with open_warehouse() as warehouse, warehouse.transaction():
        run = _read_run(warehouse, run_id)
        for table in ("feature_statistics", "histogram_cells", "feature_classes"):
            warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run", run=run_id)
        class_tokens(warehouse, run_id, run.context_length)
        for layer in run.layers:
            rows = decoders[layer].numpy()
            fill_feature_classes(warehouse, run_id, layer, run.context_length, len(rows))
            counted = warehouse.run("finish/counted_activations", **_place(run, layer)).numpy()
            for energy in run.energies:
                for frame in _decoder_statistics(warehouse, run, layer, energy, rows, counted):
                    warehouse.append("feature_statistics", frame)
                for frame in _discrete_statistics(warehouse, run, layer, energy, len(rows)):
                    warehouse.append("feature_statistics", frame)
                count_cells(warehouse, run_id, layer, energy, run.context_length)
        warehouse.run("finish/record", run=run_id)


def count_cells(warehouse: Warehouse, run_id: int, layer: int, energy: str, context_length: int) -> None:
    """Fill histogram_cells for one layer and energy, from stored activations and feature_histograms."""
    place = {"run": run_id, "layer": layer, "energy": energy, "context_length": context_length}
    warehouse.run_formatted("finish/histogram_cells", {"gradient": gradient_column(energy)}, **place)


def _read_run(warehouse: Warehouse, run_id: int) -> _RunLayout:
    row = warehouse.run("finish/run", run=run_id).fetchone()
    assert row is not None
    documents = warehouse.run("finish/documents", run=run_id).fetchall()
    ids = np.array([document_id for document_id, _, _ in documents], dtype=np.int64)
    categories = np.array([category for _, category, _ in documents], dtype=object)
    halves = np.array([half for _, _, half in documents], dtype=object)
    everything = np.ones(len(ids), dtype=bool)
    strata = [_Stratum(ALL, BOTH, everything)]
    strata += [_Stratum(str(c), BOTH, categories == c) for c in sorted(set(categories))]
    if len(set(halves)) > 1:
        strata += [_Stratum(ALL, str(h), halves == h) for h in sorted(set(halves))]
    context_length, seed, layers, energies = row
    return _RunLayout(run_id, context_length, seed, list(layers), list(energies), ids, strata)


def _place(run: _RunLayout, layer: int) -> dict[str, int]:
    return {"run": run.run_id, "layer": layer, "context_length": run.context_length}


# ------------------------------------------------------------------------------------------------ gradients


def _decoder_statistics(
    warehouse: Warehouse,
    run: _RunLayout,
    layer: int,
    energy: str,
    rows: NDArray[np.floating],
    counted: Mapping[str, NDArray[np.generic]],
) -> Iterator[pl.DataFrame]:
    """Rows of feature_statistics for the decoder gradient of one layer and energy; one frame per stratum."""
    column = {"gradient": gradient_column(energy)}
    active = warehouse.run_formatted("finish/active_sums", column, **_place(run, layer)).numpy()
    place = {"run": run.run_id, "layer": layer, "energy": energy}
    n_tokens, norm2, gradients = _document_gradients(warehouse, run, layer, energy, rows.shape[1])
    stream_sums = _StreamSums(warehouse.run("finish/moments", **place).numpy())
    active_sums, counted_sums = _DocumentSums(active, run), _DocumentSums(counted, run)
    kept_sums = _DocumentSums(warehouse.run("finish/feature_documents", **place).numpy(), run)
    along = _AlongDirections(warehouse, run, layer, energy, rows)
    for stratum in run.strata:
        parts = []
        for features in _chunks(len(rows), len(run.document_ids)):
            dense = active_sums.dense(features)
            dense["sum_g"] = -(gradients @ rows[features].T.astype(np.float64))
            kept = {name: values[stratum.documents] for name, values in kept_sums.dense(features).items()}
            moments = stream_sums.of(stratum, features)
            statistics = _stratum_statistics(stratum, dense, n_tokens, moments["sum_g2"])
            within = counted_sums.dense(features)
            statistics |= {name: moments[name] for name in _StreamSums.WITHIN}
            statistics["sum_ac2"] = within["sum_ac2"][stratum.documents].sum(0)
            statistics["n_counted_documents"] = within["seen"][stratum.documents].sum(0)
            statistics |= _across_documents(stratum, dense, kept, n_tokens, norm2, moments["sum_g2"])
            statistics["feature"] = np.arange(features.start, features.stop, dtype=np.int32)
            parts.append(statistics)
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        whole |= along.test(stratum, whole["sum_s"], whole["sum_gc2"])
        yield _statistics_frame(run, layer, energy, "decoder", stratum, _tested(whole))


def _discrete_statistics(
    warehouse: Warehouse, run: _RunLayout, layer: int, energy: str, d_sae: int
) -> Iterator[pl.DataFrame]:
    """The same for the discrete gradient, whose sums all come from stored tables."""
    warehouse.run("finish/centre_discrete", **_place(run, layer), energy=energy)
    active = _DocumentSums(warehouse.run("finish/active_sums_discrete", run=run.run_id, layer=layer).numpy(), run)
    sums = warehouse.run("finish/document_sums_discrete", run=run.run_id).numpy()
    n_tokens, sum_g, sum_g2, sum_gc2 = (np.zeros(len(run.document_ids)) for _ in range(4))
    where = np.searchsorted(run.document_ids, sums["document_id"])
    for target, name in ((n_tokens, "n_tokens"), (sum_g, "sum_g"), (sum_g2, "sum_g2"), (sum_gc2, "sum_gc2")):
        target[where] = sums[name]
    for stratum in run.strata:
        parts = []
        for features in _chunks(d_sae, len(run.document_ids)):
            dense = active.dense(features)
            dense["sum_g"] = np.broadcast_to(sum_g[:, None], dense["sum_a"].shape)
            total = np.full(features.stop - features.start, sum_g2[stratum.documents].sum())
            statistics = _stratum_statistics(stratum, dense, n_tokens, total)
            # A derivative along the text says nothing about adding the feature.
            statistics["sum_v2"] = np.full(len(total), np.nan)
            statistics |= {name: dense[name][stratum.documents].sum(0) for name in _WITHIN_DISCRETE}
            of_tokens = {"sum_g2": np.broadcast_to(sum_g2[:, None], dense["sum_a"].shape)}
            kept = {name: values[stratum.documents] for name, values in (dense | of_tokens).items()}
            statistics |= _across_documents(stratum, dense, kept, n_tokens, np.zeros(len(n_tokens)), total)
            statistics["q_attribution"] = np.full(len(total), np.nan)
            counted_documents = (dense["n_counted"][stratum.documents] > 0).sum(0)
            statistics["n_counted_documents"] = counted_documents.astype(np.float64)
            statistics["sum_gc2"] = np.full(len(total), sum_gc2[stratum.documents].sum())
            statistics["feature"] = np.arange(features.start, features.stop, dtype=np.int32)
            parts.append(statistics)
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        yield _statistics_frame(run, layer, energy, "discrete", stratum, _tested(whole))


#: What the within-context test of the discrete gradient sums, of finish/active_sums_discrete.
_WITHIN_DISCRETE = ("n_counted", "n_counted_contexts", "sum_s", "sum_s2", "null_s", "null_s2", "sum_ac2")


def _document_gradients(
    warehouse: Warehouse, run: _RunLayout, layer: int, energy: str, d_model: int
) -> tuple[Floats, Floats, Floats]:
    """Included tokens and Σ‖∇‖² [document], and Σ∇ [document, d_model], summed in group order."""
    n_tokens, norm2 = np.zeros(len(run.document_ids)), np.zeros(len(run.document_ids))
    gradients = np.zeros((len(run.document_ids), d_model))
    place = {document_id: i for i, document_id in enumerate(run.document_ids.tolist())}
    result = warehouse.run("finish/document_sums", run=run.run_id, layer=layer, energy=energy)
    while batch := result.fetchmany(1_000):
        for document_id, _, n, gradient_sum, sum_norm2 in batch:
            n_tokens[place[document_id]] += n
            norm2[place[document_id]] += sum_norm2
            gradients[place[document_id]] += gradient_sum
    return n_tokens, norm2, gradients


# ------------------------------------------------------------------------------------------------ sums


class _DocumentSums:
    """Sums by feature and document from SQL, made dense for a chunk of features at a time."""

    def __init__(self, columns: Mapping[str, NDArray[np.generic]], run: _RunLayout) -> None:
        self._features = np.asarray(columns["feature"])  # sorted
        self._documents = np.searchsorted(run.document_ids, np.asarray(columns["document_id"]))
        # sum_a2h2 is NULL without probes: NaN here.
        self._values = {
            name: np.ma.filled(np.ma.asarray(v).astype(np.float64), np.nan)
            for name, v in columns.items()
            if name not in ("feature", "document_id")
        }
        self._n_documents = len(run.document_ids)

    def dense(self, features: slice) -> dict[str, Floats]:
        """Each column as [document, feature]; `seen` is 1 where there is a row."""
        start, stop = np.searchsorted(self._features, [features.start, features.stop])
        rows, columns = self._documents[start:stop], self._features[start:stop] - features.start
        result = {}
        for name, values in {**self._values, "seen": np.ones(len(self._features))}.items():
            result[name] = np.zeros((self._n_documents, features.stop - features.start))
            result[name][rows, columns] = values[start:stop]
        return result


class _StreamSums:
    """Stream sums by feature, for each category and half."""

    WITHIN = ("n_counted", "n_counted_contexts", "sum_gc2", "sum_s", "sum_s2", "null_s", "null_s2", "sum_a2h2")

    def __init__(self, columns: Mapping[str, NDArray[np.generic]]) -> None:
        # sum_a2h2 is NULL without probes: a masked array, whose gaps become NaN here and NULL again in the frame.
        self._columns = {
            name: np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
            for name, values in columns.items()
            if name not in ("category", "half", "feature")
        }
        self._category, self._half = np.asarray(columns["category"]), np.asarray(columns["half"])

    def of(self, stratum: _Stratum, features: slice) -> dict[str, Floats]:
        """Sums of one stratum by feature."""
        chosen = _is_of(stratum, self._category, self._half)
        n_parts = len({*zip(self._category[chosen], self._half[chosen], strict=True)})
        return {name: values[chosen].reshape(n_parts, -1)[:, features].sum(0) for name, values in self._columns.items()}


def _stratum_statistics(
    stratum: _Stratum, dense: Mapping[str, Floats], n_tokens: Floats, sum_g2: Floats
) -> dict[str, Floats]:
    """Sums of one stratum by feature, with the squared document shares that its intervals need.

    dense: [document, feature] sums; n_tokens: [document]; sum_g2: [feature].
    """
    by_document = {name: values[stratum.documents] for name, values in dense.items()}
    tokens = n_tokens[stratum.documents]
    n, n_documents = tokens.sum(), int((tokens > 0).sum())
    total = {name: values.sum(0) for name, values in by_document.items()}
    nothing = np.full(len(sum_g2), np.nan)
    sum_v2, quantile = nothing, nothing
    if enough(tokens):
        sum_v2 = ((by_document["sum_ag"] - total["sum_ag"] / n_documents)[tokens > 0] ** 2).sum(0)
        quantile = np.full(len(sum_g2), t_quantile(n_documents - 1))
    names = ("n_active", "sum_a", "sum_a2", "sum_g", "sum_ag", "active_g", "active_g2")
    return {
        **{name: total[name] for name in names},
        "n_tokens": np.full(len(sum_g2), n),
        "n_documents": np.full(len(sum_g2), float(n_documents)),
        "sum_g2": sum_g2,
        "sum_v2": sum_v2,
        "t_quantile": quantile,
    }


def _across_documents(
    stratum: _Stratum,
    dense: Mapping[str, Floats],
    kept: Mapping[str, Floats],
    n_tokens: Floats,
    norm2: Floats,
    sum_g2: Floats,
) -> dict[str, Floats]:
    """What takes the stratum's documents for the samples, by feature; p of attribution stands for its q for now.

    dense: of stored tables [document of the run, feature]; kept: of the stream [document of the stratum, feature].
    """
    tokens = n_tokens[stratum.documents]
    of_documents = {name: values[stratum.documents] for name, values in dense.items()}
    nothing = np.full(len(sum_g2), np.nan)
    found = {"sum_i2": nothing, "i_quantile": nothing, "q_attribution": nothing}
    if enough(tokens):
        of_tokens = {name: of_documents[f"sum_{name}"] for name in ("a", "a2", "g", "ag")}
        covered = kept.get("sum_norm2", np.zeros_like(kept["sum_g2"]))
        sums = TokenSums(n=tokens, norm2=norm2[stratum.documents], g2=kept["sum_g2"], covered=covered, **of_tokens)
        found["sum_i2"], found["i_quantile"] = interval(sums, sum_g2)
        effect = of_documents["sum_ag"] + np.nan_to_num(kept.get("sum_a2h2", np.zeros(1))) / 2
        found["q_attribution"] = mean_test(effect, np.broadcast_to(tokens[:, None] > 0, effect.shape))
    s = kept["sum_s"]
    return found | {
        "n_s_documents": (s != 0).sum(0).astype(np.float64),
        "sum_sd2": (s**2).sum(0),
        "p_documents": mean_test(s, s != 0),
    }


class _AlongDirections:
    """Sums along the shared directions of a layer, for one energy."""

    def __init__(
        self, warehouse: Warehouse, run: _RunLayout, layer: int, energy: str, rows: NDArray[np.floating]
    ) -> None:
        stored = warehouse.run("finish/direction_sums", run=run.run_id, layer=layer, energy=energy).numpy()
        self._feature = np.asarray(stored["feature"], dtype=np.int64)  # sorted
        self._category, self._half = np.asarray(stored["category"]), np.asarray(stored["half"])
        self._scale = np.asarray(stored["scale"])
        self._codes = np.stack(stored["along"]) if len(self._feature) else np.zeros((0, 0), dtype=np.int8)
        self._rows = rows
        self._references = read_references(warehouse, run.run_id, layer)
        self._probes = random_probes(rows.shape[1], run.seed, layer).numpy().astype(np.float64)

    def test(self, stratum: _Stratum, sum_s: Floats, sum_gc2: Floats) -> dict[str, Floats]:
        """Columns of the test of the direction, by feature; sum_s and sum_gc2 [feature] are the stratum's."""
        chosen = np.flatnonzero(_is_of(stratum, self._category, self._half))
        columns = {name: np.full(len(sum_s), np.nan) for name in ("t_specific", "p_specific", "p_reference", "cosine")}
        if not len(chosen):
            return columns
        starts = np.flatnonzero(np.diff(self._feature[chosen], prepend=-1))
        features = self._feature[chosen][starts]
        along = np.add.reduceat(unpacked(self._scale[chosen], self._codes[chosen]), starts)
        sizes = Sizes(self._rows, self._references, self._probes, sum_s, sum_gc2)
        found = direction_test(sizes, features, along)
        for column, values in zip(columns.values(), found, strict=True):
            column[features] = values
        return columns


def _is_of(stratum: _Stratum, category: NDArray[np.generic], half: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which of several cells belong to a stratum."""
    chosen = np.ones(len(category), dtype=bool)
    if stratum.category != ALL:
        chosen &= category == stratum.category
    if stratum.half != BOTH:
        chosen &= half == stratum.half
    return chosen


def _tested(statistics: Mapping[str, Floats]) -> dict[str, Floats]:
    """With p, and q of every p, by feature; NaN where the feature has too little to test."""
    testable = (
        (statistics["n_counted"] >= MIN_TEST_TOKENS)
        & (statistics["n_counted_contexts"] >= MIN_TEST_CONTEXTS)
        & (statistics["n_counted_documents"] >= MIN_TEST_DOCUMENTS)
        & (statistics["sum_s2"] > 0)
    )
    nothing = np.full(len(testable), np.nan)
    whole = dict(statistics)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole["p_value"] = two_sided_p(statistics["sum_s"] / np.sqrt(statistics["sum_s2"]))
    for name in ("p_value", "t_specific", "p_specific", "p_reference", "cosine", "p_documents"):
        whole[name] = np.where(testable, whole.get(name, nothing), np.nan)
    for p, q in (("p_value", "q_value"), ("p_specific", "q_specific"), ("p_documents", "q_documents")):
        whole[q] = known_q(whole[p])
    whole["q_attribution"] = known_q(np.where(whole["n_active"] > 0, whole["q_attribution"], np.nan))
    return whole


_INTEGER_COLUMNS = (
    "n_tokens", "n_active", "n_documents", "n_counted", "n_counted_contexts", "n_counted_documents", "n_s_documents",
)  # fmt: skip


def _statistics_frame(
    run: _RunLayout, layer: int, energy: str, gradient: str, stratum: _Stratum, statistics: Mapping[str, Floats]
) -> pl.DataFrame:
    """Rows of feature_statistics; features that never fire in a stratum are kept for all documents only."""
    frame = pl.DataFrame({name: np.asarray(values) for name, values in statistics.items()})
    frame = frame.with_columns(pl.col(pl.Float64).fill_nan(None))
    frame = frame.with_columns(pl.col(name).cast(pl.Int64) for name in _INTEGER_COLUMNS if name in frame.columns)
    if (stratum.category, stratum.half) != (ALL, BOTH):
        frame = frame.filter(pl.col("n_active") > 0)
    place = {"layer": layer, "energy": energy, "gradient": gradient, "category": stratum.category, "half": stratum.half}
    return frame.with_columns(run_id=pl.lit(run.run_id), **{name: pl.lit(value) for name, value in place.items()})


def _chunks(d_sae: int, n_documents: int) -> Iterator[slice]:
    size = max(1, CHUNK_NUMBERS // max(1, n_documents))
    for start in range(0, d_sae, size):
        yield slice(start, min(start + size, d_sae))
