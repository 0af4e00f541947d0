"""A slice of a layer's activations in, columns of feature_statistics for the discrete gradient of an energy out.

The discrete gradient is one number a token, so all of its statistics come from stored tables: the within-context test
too, which the stream makes of the decoder gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.columns import Columns, Pairs, StratumTokens, common
from energy_lens.ingest.statistics.document_moments import Documents
from energy_lens.ingest.statistics.intervals import PairSums, Totals, interval
from energy_lens.ingest.statistics.kernels import discrete_sums
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.strata import RunLayout, summed
from energy_lens.ingest.statistics.tokens import Centred, Tokens
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]


class DiscreteGradient:
    """The stored gradients of one layer and energy, and what is made of them slice by slice."""

    def __init__(self, warehouse: Warehouse, run: RunLayout, tokens: Tokens, layer: int, energy: str) -> None:
        self._run = run
        stored = warehouse.run("finish/discrete", run=run.run_id, layer=layer, energy=energy).numpy()
        place = tokens.places(stored["token_id"])
        g, defined = np.zeros(len(tokens)), np.zeros(len(tokens), dtype=bool)
        g[place], defined[place] = stored["discrete"], True
        c = Centred.of(tokens, g, defined)
        document = run.contexts.document[tokens.context]
        n, sum_g, sum_g2, self._sum_gc2 = (
            summed(values, document, len(run.document_ids)) for values in (defined, g, g**2, c.tested**2)
        )
        self._sum_g = sum_g
        self._at_tokens = np.stack([g, c.tested, c.control, defined, c.counted], axis=1)
        self._n_counted = tokens.of_context(c.counted)
        self._documents = Documents(run, n, sum_g2, sum_g[:, None])
        # The same for all features: moments of one row that is 1, with every document's g'.
        self._moments = self._documents.moments(np.ones((1, 1)), np.zeros_like(n, dtype=np.int64), np.arange(len(n)))
        self._strata = [StratumTokens.of(partition, n) for partition in run.partitions]

    def statistics(self, rows: Slice, keys_of: Sequence[Keys]) -> list[Columns]:
        """Columns of each partition of the run. keys_of: the slice's keys in each."""
        pairs, within = self._pairs(rows)
        n, weight = (of[rows.pair_document] for of in (self._documents.n, self._documents.w))
        moments = self._moments.at(rows.pair_document)
        # A document's Σg² is known whether the feature fires there or not, so none is left to be spread.
        sums = PairSums(n, pairs.a, pairs.a2, pairs.ag, weight, g2=weight, share=np.zeros_like(weight))
        run_g = float(self._documents.mean[0])
        result = []
        for partition, keys, strata in zip(self._run.partitions, keys_of, self._strata, strict=True):
            columns = common(keys, strata, pairs, rows.start)
            columns |= dict(zip(within, keys.sums(*within.values()), strict=True))
            of_documents = {"sum_g": self._sum_g, "sum_g2": self._documents.w, "sum_gc2": self._sum_gc2}
            for name, values in of_documents.items():
                columns[name] = summed(values, partition.of_documents, len(partition.strata))[keys.stratum]
            mean = np.full(len(keys), run_g)
            totals = Totals(columns["n_tokens"], columns["sum_g2"], mean, columns["sum_g"], columns["sum_g2"])
            wanted, none = strata.enough[keys.stratum], np.full(len(keys), np.nan)
            for name, values in zip(
                ("sum_i2", "i_quantile"), interval(keys, partition, sums, totals, moments), strict=True
            ):
                columns[name] = np.where(wanted, values, none)
            # A derivative along the text says nothing about adding the feature.
            columns["sum_v2"] = columns["q_attribution"] = none
            result.append(columns)
        return result

    def _pairs(self, rows: Slice) -> tuple[Pairs, Mapping[str, Floats]]:
        """Sums of pairs, and those of the within-context test, which are of contexts first [pair]."""
        sums = discrete_sums(
            rows.cells, rows.cell_pairs, rows.place, rows.a, self._at_tokens, self._n_counted[rows.cell_context]
        )
        of_test = ("n_counted", "n_counted_contexts", "sum_s", "sum_s2", "null_s", "null_s2")
        within = dict(zip(of_test, sums[-len(of_test) :], strict=True))
        n_active, a, a2, ag, g, g2, ac2 = sums[: -len(of_test)]
        return Pairs(n_active, a, a2, ag, g, g2, ac2, within["n_counted"] > 0, within["sum_s"]), within
