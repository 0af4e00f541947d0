"""Finish: stored rows and stream sums in, `feature_statistics`, `histogram_cells` and `feature_classes` out, at once.

A layer's activations are read a slice of features at a time, once for all energies. Sums over the documents in which a
feature fires are combined for all documents, each category and each half (`strata`), for the decoder gradient
(`decoder`) and the discrete one (`discrete`), and tested (`columns`). What is left, from sums to scores and intervals,
is algebra in the view `efas`; p, q and quantiles are computed here, as DuckDB has no normal distribution.

Source of the false discovery rate: Benjamini and Hochberg 1995.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.statistics.activations import Activations, ranges
from energy_lens.ingest.statistics.columns import Columns, concatenated, statistics_frame, tested
from energy_lens.ingest.statistics.decoder import Activity, DecoderGradient
from energy_lens.ingest.statistics.discrete import DiscreteGradient
from energy_lens.ingest.statistics.feature_classes import FeatureClasses, class_tokens
from energy_lens.ingest.statistics.histogram_cells import HistogramCells
from energy_lens.ingest.statistics.strata import RunLayout, read_run
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.warehouse.database import Warehouse


def finish(open_warehouse: Callable[[], Warehouse], run_id: int, decoders: Mapping[int, Tensor]) -> None:
    """Fill feature_statistics, histogram_cells and feature_classes for a run.

    decoders: layer: decoder rows [d_sae, d_model]. Everything or nothing is replaced.
    """
    with open_warehouse() as warehouse, warehouse.transaction():
        run = read_run(warehouse, run_id)
        class_tokens(warehouse, run_id, run.context_length)
        for table in ("feature_statistics", "histogram_cells", "feature_classes"):
            warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run", run=run_id)
        warehouse.run("finish/create_groups_of_cells")
        cells = {"group_id": run.group_ids.astype(np.int32), "cell": run.group_cells.astype(np.int32)}
        warehouse.append("groups_of_cells", pl.DataFrame(cells))
        tokens = Tokens.read(warehouse, run)
        for layer in run.layers:
            _finish_layer(warehouse, run, tokens, layer, decoders[layer].float().numpy())
        warehouse.run("finish/drop_groups_of_cells")
        warehouse.run("finish/record", run=run_id)


def _finish_layer(
    warehouse: Warehouse, run: RunLayout, tokens: Tokens, layer: int, decoder: NDArray[np.floating]
) -> None:
    included, counted = _chosen(warehouse, run, tokens, layer)
    classes = FeatureClasses(tokens, included, len(decoder))
    along_rows = {energy: DecoderGradient(warehouse, run, layer, energy, decoder) for energy in run.energies}
    along_text = {energy: DiscreteGradient(warehouse, run, tokens, layer, energy) for energy in run.energies}
    histograms = {
        energy: HistogramCells(warehouse, run, tokens, included, layer, energy) for energy in run.energies
    }
    parts: dict[tuple[str, str], list[list[Columns]]] = {}
    for start, stop in ranges(warehouse, run, layer, len(decoder)):
        activations = Activations(warehouse, run, tokens, layer, start, stop)
        for gradient in (*along_rows.values(), *histograms.values()):
            gradient.read(start, stop)
        for rows in activations.slices():
            classes.add(rows)
            activity = Activity.of(rows, tokens, counted)
            for energy in run.energies:
                histograms[energy].add(rows)
                columns = along_rows[energy].statistics(rows, activity)
                parts.setdefault((energy, "decoder"), []).append(columns)
                parts.setdefault((energy, "discrete"), []).append(along_text[energy].statistics(rows))
    for (energy, kind), of_slices in parts.items():
        for partition, *of_partition in zip(run.partitions, *of_slices, strict=True):
            whole = tested(concatenated(of_partition))
            frame = statistics_frame(run, layer, energy, kind, partition, whole)
            warehouse.append("feature_statistics", frame)
    for frame in classes.frames():
        place = {"run_id": run.run_id, "layer": layer}
        warehouse.append("feature_classes", frame.with_columns(**{name: pl.lit(value) for name, value in place.items()}))
    for cells in histograms.values():
        if (counts := cells.frame()) is not None:
            warehouse.append("histogram_cells", counts)


def _chosen(
    warehouse: Warehouse, run: RunLayout, tokens: Tokens, layer: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tokens of a layer are included, and which the within-context test counts [token]."""
    stored = warehouse.run("finish/token_layers", run=run.run_id, layer=layer).numpy()
    place = tokens.places(stored["token_id"])
    included, counted = np.zeros(len(tokens), dtype=bool), np.zeros(len(tokens), dtype=bool)
    included[place], counted[place] = True, stored["counted"]
    return included, counted
