"""Finish: stored rows and stream sums in; statistics, histograms, classes and whatever views would scan for, at once.

A layer's activations are read a slice of features at a time, once for all energies. Sums over the documents in which a
feature fires are combined for all documents, each category and each half (`strata`), for the decoder gradient
(`decoder`) and the discrete one (`discrete`), and tested (`columns`). What is left, from sums to scores and intervals,
is algebra in the view `efas`; p, q and quantiles are computed here, as DuckDB has no normal distribution.

Source of the false discovery rate: Benjamini and Hochberg 1995.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.statistics.activations import Activations, Slice, ranges
from energy_lens.ingest.statistics.cards import CARDS, LayerCards, Part
from energy_lens.ingest.statistics.columns import Columns, concatenated, statistics_frame, tested
from energy_lens.ingest.statistics.decoder import Activity, DecoderGradient, StoredSums
from energy_lens.ingest.statistics.discrete import DiscreteGradient
from energy_lens.ingest.statistics.energy_sizes import fill_energy_sizes
from energy_lens.ingest.statistics.feature_activity import FeatureActivity
from energy_lens.ingest.statistics.feature_classes import FeatureClasses, class_tokens
from energy_lens.ingest.statistics.histogram_cells import HistogramCells, StoredCounts
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.strata import RunLayout, read_run
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.warehouse.database import Warehouse

Integers = NDArray[np.int64]
S = TypeVar("S")
T = TypeVar("T")

#: Slices that are worked on at once; more of them would wait for memory.
THREADS = min(4, os.cpu_count() or 1)

#: What DuckDB may hold of the file: without a limit it keeps all that it reads, and is no faster for it (measured).
MEMORY_LIMIT = "700MB"

#: Tables that are filled here, and nowhere else.
FILLED = (
    "feature_statistics", "histogram_cells", "feature_classes", "feature_activity", "layer_tokens", "layer_energies",
    "layer_losses", *CARDS,
)  # fmt: skip


class Stored(NamedTuple):
    """What is stored of consecutive features of a layer."""

    rows: Activations
    sums: dict[str, StoredSums]  #: energy
    counts: dict[str, StoredCounts]  #: energy


class Made(NamedTuple):
    """What is made of a slice."""

    columns: dict[tuple[str, str], list[Columns]]  #: (energy, gradient): of each partition
    counts: dict[str, list[dict[str, Integers]]]  #: energy: joint histograms, of all documents and of categories
    fired: tuple[pl.DataFrame, pl.DataFrame] | None  #: how its features fire, and their strongest activations
    cards: Part  #: what their cards show


def finish(open_warehouse: Callable[[], Warehouse], run_id: int, decoders: Mapping[int, Tensor]) -> None:
    """Fill the tables in FILLED for a run.

    decoders: layer: decoder rows [d_sae, d_model]. Everything or nothing is replaced.
    """
    with open_warehouse() as warehouse, warehouse.transaction():
        warehouse.sql(f"SET memory_limit = '{MEMORY_LIMIT}'")
        run = read_run(warehouse, run_id)
        class_tokens(warehouse, run_id, run.context_length)
        for table in FILLED:
            warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run", run=run_id)
        warehouse.run("finish/create_groups_of_cells")
        cells = {"group_id": run.group_ids.astype(np.int32), "cell": run.group_cells.astype(np.int32)}
        warehouse.append("groups_of_cells", pl.DataFrame(cells))
        tokens = Tokens.read(warehouse, run)
        included = {}
        with ThreadPoolExecutor(THREADS) as pool:
            for layer in run.layers:
                decoder = decoders[layer].float().numpy()
                included[layer] = _finish_layer(warehouse, run, tokens, layer, decoder, pool)
        warehouse.run("finish/layer_tokens", run=run_id)
        fill_energy_sizes(warehouse, run, tokens, included)
        warehouse.run("finish/drop_groups_of_cells")
        warehouse.run("finish/record", run=run_id)


def _finish_layer(
    warehouse: Warehouse,
    run: RunLayout,
    tokens: Tokens,
    layer: int,
    decoder: NDArray[np.floating],
    pool: ThreadPoolExecutor,
) -> NDArray[np.bool_]:
    """Fill what is known of a layer; returns the layer's included tokens [token]."""
    included, counted = _chosen(warehouse, run, tokens, layer)
    classes, fired = pool.submit(FeatureClasses, tokens, included, len(decoder)), FeatureActivity(tokens)
    cards = LayerCards(run, tokens, included, decoder)
    along_rows = {energy: DecoderGradient(warehouse, run, layer, energy, decoder) for energy in run.energies}
    along_text = {energy: DiscreteGradient(warehouse, run, tokens, layer, energy) for energy in run.energies}
    histograms = {energy: HistogramCells(warehouse, run, tokens, included, layer, energy) for energy in run.energies}
    n_counted = tokens.of_context(counted)
    parts: dict[tuple[str, str], list[list[Columns]]] = {}

    def read(bounds: tuple[int, int]) -> Stored:
        return Stored(
            Activations(warehouse, run, tokens, layer, *bounds),
            {energy: gradient.read(*bounds) for energy, gradient in along_rows.items()},
            {energy: cells.read(*bounds) for energy, cells in histograms.items()},
        )

    def work(rows: Slice, stored: Stored) -> Made:
        """All that is made of a slice; nothing here depends on another one, so that threads may take turns."""
        classes.result().add(rows)
        keys = [Keys.of(rows, partition) for partition in run.partitions]
        activity = Activity.of(rows, counted, n_counted)
        columns: dict[tuple[str, str], list[Columns]] = {}
        for energy in run.energies:
            columns[energy, "decoder"] = along_rows[energy].statistics(rows, stored.sums[energy], keys, activity)
            columns[energy, "discrete"] = along_text[energy].statistics(rows, keys)
        counts = {energy: histograms[energy].counts(rows, stored.counts[energy]) for energy in run.energies}
        return Made(columns, counts, fired.of(rows), cards.of(rows))

    bounds = ranges(warehouse, run, layer, len(decoder))
    with ThreadPoolExecutor(1) as reader:
        # What comes next is read while there is work on what came before.
        slices = ((rows, stored) for stored in _in_turn(reader, read, bounds, 1) for rows in stored.rows.slices())
        for made in _in_turn(pool, lambda slice_: work(*slice_), slices, THREADS):
            fired.add(made.fired)
            cards.add(made.cards)
            for energy in run.energies:
                histograms[energy].add(made.counts[energy])
            for key, of_slice in made.columns.items():
                parts.setdefault(key, []).append(of_slice)
    for (energy, kind), of_slices in parts.items():
        for partition, *of_partition in zip(run.partitions, *of_slices, strict=True):
            whole = tested(concatenated(of_partition))
            frame = statistics_frame(run, layer, energy, kind, partition, whole)
            warehouse.append("feature_statistics", frame)
    for frame in classes.result().frames():
        place = {"run_id": run.run_id, "layer": layer}
        warehouse.append(
            "feature_classes", frame.with_columns(**{name: pl.lit(value) for name, value in place.items()})
        )
    for histogram in histograms.values():
        if (counts := histogram.frame()) is not None:
            warehouse.append("histogram_cells", counts)
    fired.store(warehouse, run.run_id, layer)
    cards.store(warehouse, run.run_id, layer)
    return included


def _in_turn(pool: ThreadPoolExecutor, work: Callable[[S], T], items: Iterable[S], ahead: int) -> Iterator[T]:
    """What `work` makes of items, in order; only so many of them are made ahead."""
    under_way: deque[Future[T]] = deque()
    for item in items:
        under_way.append(pool.submit(work, item))
        if len(under_way) > ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _chosen(
    warehouse: Warehouse, run: RunLayout, tokens: Tokens, layer: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tokens of a layer are included, and which the within-context test counts [token]."""
    stored = warehouse.run("finish/token_layers", run=run.run_id, layer=layer).numpy()
    place = tokens.places(stored["token_id"])
    included, counted = np.zeros(len(tokens), dtype=bool), np.zeros(len(tokens), dtype=bool)
    included[place], counted[place] = True, stored["counted"]
    return included, counted
