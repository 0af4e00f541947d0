"""Finish: stored rows and stream sums in, `feature_statistics`, `histogram_cells` and `feature_classes` out, at once.

Stored sums are combined for all documents, each category, and each half (`strata`), and tested (`columns`). What is
left, from sums to scores and intervals, is algebra in the view `efas`; p, q and quantiles are computed here, as DuckDB
has no normal distribution.

Source of the false discovery rate: Benjamini and Hochberg 1995.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.statistics.columns import across_documents, statistics_frame, sums_of_stratum, tested
from energy_lens.ingest.statistics.feature_classes import class_tokens, fill_feature_classes
from energy_lens.ingest.statistics.strata import (
    RunLayout,
    SumsAlongDirections,
    SumsByCell,
    SumsByDocument,
    chunks,
    document_gradients,
    read_run,
)
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.runs import gradient_column


def finish(open_warehouse: Callable[[], Warehouse], run_id: int, decoders: Mapping[int, Tensor]) -> None:
    """Fill feature_statistics, histogram_cells and feature_classes for a run.

    decoders: layer: decoder rows [d_sae, d_model]. Everything or nothing is replaced.
    """
    with open_warehouse() as warehouse, warehouse.transaction():
        run = read_run(warehouse, run_id)
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


def _place(run: RunLayout, layer: int) -> dict[str, int]:
    return {"run": run.run_id, "layer": layer, "context_length": run.context_length}


# ------------------------------------------------------------------------------------------------ gradients


def _decoder_statistics(
    warehouse: Warehouse,
    run: RunLayout,
    layer: int,
    energy: str,
    rows: NDArray[np.floating],
    counted: Mapping[str, NDArray[np.generic]],
) -> Iterator[pl.DataFrame]:
    """Rows of feature_statistics for the decoder gradient of one layer and energy; one frame per stratum."""
    column = {"gradient": gradient_column(energy)}
    active = warehouse.run_formatted("finish/active_sums", column, **_place(run, layer)).numpy()
    place = {"run": run.run_id, "layer": layer, "energy": energy}
    n_tokens, norm2, gradients = document_gradients(warehouse, run, layer, energy, rows.shape[1])
    stream_sums = SumsByCell(warehouse.run("finish/moments", **place).numpy())
    active_sums, counted_sums = SumsByDocument(active, run), SumsByDocument(counted, run)
    kept_sums = SumsByDocument(warehouse.run("finish/feature_documents", **place).numpy(), run)
    along = SumsAlongDirections(warehouse, run, layer, energy, rows)
    for stratum in run.strata:
        parts = []
        for features in chunks(len(rows), len(run.document_ids)):
            dense = active_sums.dense(features)
            dense["sum_g"] = -(gradients @ rows[features].T.astype(np.float64))
            kept = {name: values[stratum.documents] for name, values in kept_sums.dense(features).items()}
            moments = stream_sums.of(stratum, features)
            statistics = sums_of_stratum(stratum, dense, n_tokens, moments["sum_g2"])
            within = counted_sums.dense(features)
            statistics |= {name: moments[name] for name in SumsByCell.WITHIN}
            statistics["sum_ac2"] = within["sum_ac2"][stratum.documents].sum(0)
            statistics["n_counted_documents"] = within["seen"][stratum.documents].sum(0)
            statistics |= across_documents(stratum, dense, kept, n_tokens, norm2, moments["sum_g2"])
            statistics["feature"] = np.arange(features.start, features.stop, dtype=np.int32)
            parts.append(statistics)
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        whole |= along.test(stratum, whole["sum_s"], whole["sum_gc2"])
        yield statistics_frame(run, layer, energy, "decoder", stratum, tested(whole))


def _discrete_statistics(
    warehouse: Warehouse, run: RunLayout, layer: int, energy: str, d_sae: int
) -> Iterator[pl.DataFrame]:
    """The same for the discrete gradient, whose sums all come from stored tables."""
    warehouse.run("finish/centre_discrete", **_place(run, layer), energy=energy)
    active = SumsByDocument(warehouse.run("finish/active_sums_discrete", run=run.run_id, layer=layer).numpy(), run)
    sums = warehouse.run("finish/document_sums_discrete", run=run.run_id).numpy()
    n_tokens, sum_g, sum_g2, sum_gc2 = (np.zeros(len(run.document_ids)) for _ in range(4))
    where = np.searchsorted(run.document_ids, sums["document_id"])
    for target, name in ((n_tokens, "n_tokens"), (sum_g, "sum_g"), (sum_g2, "sum_g2"), (sum_gc2, "sum_gc2")):
        target[where] = sums[name]
    for stratum in run.strata:
        parts = []
        for features in chunks(d_sae, len(run.document_ids)):
            dense = active.dense(features)
            dense["sum_g"] = np.broadcast_to(sum_g[:, None], dense["sum_a"].shape)
            total = np.full(features.stop - features.start, sum_g2[stratum.documents].sum())
            statistics = sums_of_stratum(stratum, dense, n_tokens, total)
            # A derivative along the text says nothing about adding the feature.
            statistics["sum_v2"] = np.full(len(total), np.nan)
            statistics |= {name: dense[name][stratum.documents].sum(0) for name in _WITHIN_DISCRETE}
            of_tokens = {"sum_g2": np.broadcast_to(sum_g2[:, None], dense["sum_a"].shape)}
            kept = {name: values[stratum.documents] for name, values in (dense | of_tokens).items()}
            statistics |= across_documents(stratum, dense, kept, n_tokens, np.zeros(len(n_tokens)), total)
            statistics["q_attribution"] = np.full(len(total), np.nan)
            counted_documents = (dense["n_counted"][stratum.documents] > 0).sum(0)
            statistics["n_counted_documents"] = counted_documents.astype(np.float64)
            statistics["sum_gc2"] = np.full(len(total), sum_gc2[stratum.documents].sum())
            statistics["feature"] = np.arange(features.start, features.stop, dtype=np.int32)
            parts.append(statistics)
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        yield statistics_frame(run, layer, energy, "discrete", stratum, tested(whole))


#: What the within-context test of the discrete gradient sums, of finish/active_sums_discrete.
_WITHIN_DISCRETE = ("n_counted", "n_counted_contexts", "sum_s", "sum_s2", "null_s", "null_s2", "sum_ac2")
