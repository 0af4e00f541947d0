"""A run's activations and decoder rows in; what a feature's card shows of them out, a layer at a time.

Histograms and examples of activations, tokens that a feature fires on, and its neighbours. `finish` fills these as it
comes by; `fill_cards` does so for a run that an older version finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.ingest.statistics.activations import Activations, Slice, ranges
from energy_lens.ingest.statistics.feature_examples import FeatureExamples
from energy_lens.ingest.statistics.feature_neighbours import FeatureNeighbours
from energy_lens.ingest.statistics.feature_tokens import FeatureTokens
from energy_lens.ingest.statistics.strata import RunLayout, read_run
from energy_lens.ingest.statistics.tokens import Mask, Tokens
from energy_lens.warehouse.database import Warehouse

#: Tables that are filled here.
CARDS = ("activation_histogram", "activation_intervals", "feature_neighbours", "feature_tokens")


class Part(NamedTuple):
    """Of a slice."""

    rows: Slice
    examples: tuple[pl.DataFrame, pl.DataFrame] | None
    fired_on: pl.DataFrame


class LayerCards:
    """Gathers the features of a layer slice by slice, in their order."""

    def __init__(self, run: RunLayout, tokens: Tokens, included: Mask, decoder: NDArray[np.floating]) -> None:
        """included: [token] those that statistics include. decoder: rows [d_sae, d_model]."""
        self._examples = FeatureExamples(tokens, run.seed)
        self._tokens = FeatureTokens(tokens, included)
        self._neighbours = FeatureNeighbours(decoder, len(tokens), int(included.sum()))

    def of(self, rows: Slice) -> Part:
        """What is made of a slice; slices may be worked on in any order."""
        return Part(rows, self._examples.of(rows), self._tokens.of(rows))

    def add(self, part: Part) -> None:
        self._examples.add(part.examples)
        self._tokens.add(part.fired_on)
        self._neighbours.add(part.rows)

    def store(self, warehouse: Warehouse, run_id: int, layer: int) -> None:
        """Fill the tables in CARDS for the layer. Call within a transaction."""
        self._examples.store(warehouse, run_id, layer)
        self._tokens.store(warehouse, run_id, layer)
        self._neighbours.store(warehouse, run_id, layer)


def fill_cards(open_warehouse: Callable[[], Warehouse], run_id: int, decoders: Mapping[int, Tensor]) -> None:
    """Fill the tables in CARDS for a run, all or nothing. decoders: layer: decoder rows [d_sae, d_model]."""
    with open_warehouse() as warehouse, warehouse.transaction():
        run = replace(read_run(warehouse, run_id), energies=[])  # no gradients are read
        clear(warehouse, run_id)
        tokens = Tokens.read(warehouse, run)
        for layer in run.layers:
            stored = warehouse.run("finish/token_layers", run=run_id, layer=layer).numpy()
            included = np.zeros(len(tokens), dtype=bool)
            included[tokens.places(stored["token_id"])] = True
            decoder = decoders[layer].float().numpy()
            cards = LayerCards(run, tokens, included, decoder)
            for bounds in ranges(warehouse, run, layer, len(decoder)):
                for rows in Activations(warehouse, run, tokens, layer, *bounds).slices():
                    cards.add(cards.of(rows))
            cards.store(warehouse, run_id, layer)


def clear(warehouse: Warehouse, run_id: int) -> None:
    """Take a run's rows out of the tables in CARDS."""
    for table in CARDS:
        warehouse.sql(f"DELETE FROM {table} WHERE run_id = $run", run=run_id)
