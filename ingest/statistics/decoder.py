"""A slice of a layer's activations in, columns of feature_statistics for the decoder gradient of an energy out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.columns import Columns, Pairs, StratumTokens, common
from energy_lens.ingest.statistics.document_moments import Documents, moments
from energy_lens.ingest.statistics.intervals import PairSums, Totals, interval, mean_p
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.shared_directions import AlongDirections
from energy_lens.ingest.statistics.strata import Partition, RunLayout
from energy_lens.ingest.statistics.tokens import Tokens
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]

#: What the stream kept by feature and group, as finish/moments sums it up.
STREAMED = (
    "sum_g2", "sum_gc2", "n_counted_contexts", "n_counted", "sum_s", "sum_s2", "null_s", "null_s2", "sum_a2h2",
)  # fmt: skip


@dataclass(frozen=True)
class Activity:
    """What all energies share of the pairs of a slice [pair]; fields as in columns.Pairs."""

    n_active: Floats
    a: Floats
    a2: Floats
    ac2: Floats
    counted: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Slice, tokens: Tokens, counted: NDArray[np.bool_]) -> Activity:
        """counted: [token] those of the within-context test."""
        a, is_counted = rows.a.astype(np.float64), counted[rows.place]
        in_cell, n_in_cell = rows.cells.sums(a * is_counted), rows.cells.sums(is_counted)
        sizes = np.maximum(tokens.of_context(counted)[rows.cell_context], 1)
        ac2 = rows.cells.sums(a**2 * is_counted) - in_cell**2 / sizes
        n_active = np.diff(rows.pairs.bounds).astype(np.float64)
        of_cells, n_counted = (rows.pairs_of_cells(values) for values in (ac2, n_in_cell))
        return cls(n_active, rows.pairs.sums(a), rows.pairs.sums(a**2), of_cells, n_counted > 0)


class DecoderGradient:
    """The stored sums of one layer and energy, and what is made of them slice by slice."""

    def __init__(
        self, warehouse: Warehouse, run: RunLayout, layer: int, energy: str, decoder: NDArray[np.floating]
    ) -> None:
        """decoder: the SAE's rows [d_sae, d_model]."""
        self._warehouse, self._run, self._energy = warehouse, run, energy
        self._place = {"run": run.run_id, "layer": layer, "energy": energy}
        self._rows = -decoder.astype(np.float64)  # g of a gradient is its product with these
        n, norm2, self._gradients = self._document_gradients()
        self._documents = Documents.of(n, norm2, self._gradients)
        self._strata = [StratumTokens.of(partition, n) for partition in run.partitions]
        self._along = AlongDirections(warehouse, run, layer, energy, decoder)

    def statistics(self, rows: Slice, activity: Activity) -> list[Columns]:
        """Columns of each partition of the run."""
        g = rows.g[self._energy].astype(np.float64)
        kept = self._kept(rows)
        ag, active_g, active_g2 = rows.pairs.sums(rows.a * g), rows.pairs.sums(g), rows.pairs.sums(g**2)
        pairs = Pairs(
            activity.n_active, activity.a, activity.a2, ag, active_g, active_g2, activity.ac2, activity.counted,
            kept["sum_s"],
        )  # fmt: skip
        n, weight = (of[rows.pair_document] for of in (self._documents.n, self._documents.w))
        decoder, by_cell, centred_g = self._rows[rows.start : rows.stop], {}, np.zeros(len(rows.pairs))
        if any(strata.enough.any() for strata in self._strata):
            where = rows.pair_feature, rows.pair_document
            centred_g, by_cell = moments(self._run, self._documents, decoder, *where)
        share = np.maximum(weight - kept["sum_norm2"], 0)
        sums = PairSums(n, activity.a, activity.a2, ag, centred_g, weight, kept["sum_g2"], share)
        streamed = self._streamed(rows.start, rows.stop)
        result = []
        for partition, strata in zip(self._run.partitions, self._strata, strict=True):
            keys = Keys.of(rows, partition)
            columns = common(keys, strata, pairs, rows.start)
            for name, values in streamed.items():
                columns[name] = partition.of(values)[keys.stratum, keys.feature]
            columns["sum_g"] = self._sum_g(partition, decoder)[keys.stratum, keys.feature]
            columns |= self._across(keys, partition, strata, sums, columns, by_cell)
            effect = ag + np.nan_to_num(kept["sum_a2h2"]) / 2
            columns |= _attribution(keys, strata, columns, n > 0, ag, effect)
            columns |= self._along.test(keys, partition, rows, columns)
            result.append(columns)
        return result

    def _across(
        self,
        keys: Keys,
        partition: Partition,
        strata: StratumTokens,
        sums: PairSums,
        columns: Columns,
        by_cell: dict[int, Floats],
    ) -> Columns:
        """What the interval of the correlation is made of."""
        nothing = np.full(len(keys), np.nan)
        if not by_cell:
            return {"sum_i2": nothing, "i_quantile": nothing}
        run_g = self._rows @ (self._gradients.sum(0) / max(self._documents.n.sum(), 1.0))
        weights = np.bincount(partition.of_documents, self._documents.w, len(partition.strata))
        totals = Totals(
            columns["n_tokens"], weights[keys.stratum], run_g[columns["feature"].astype(np.int64)], columns["sum_g"],
            columns["sum_g2"],
        )  # fmt: skip
        i2, quantile = interval(keys, partition, sums, totals, by_cell)
        wanted = strata.enough[keys.stratum]
        return {"sum_i2": np.where(wanted, i2, nothing), "i_quantile": np.where(wanted, quantile, nothing)}

    # -------------------------------------------------------------------------------------------- stored sums

    def _document_gradients(self) -> tuple[Floats, Floats, Floats]:
        """Tokens and Σ‖∇‖² [document], and Σ∇ [document, d_model], summed in group order."""
        stored = self._warehouse.run("finish/document_sums", **self._place).numpy()
        n_documents, d_model = len(self._run.document_ids), self._rows.shape[1]
        where = np.searchsorted(self._run.document_ids, stored["document_id"])
        n, norm2 = (np.bincount(where, stored[name], n_documents) for name in ("n_tokens", "sum_norm2"))
        gradients = np.zeros((n_documents, d_model))
        if len(where):
            np.add.at(gradients, where, np.stack(stored["gradient_sum"]))
        return n, norm2, gradients

    def _kept(self, rows: Slice) -> dict[str, Floats]:
        """What the stream kept of each pair, summed over groups [pair]."""
        bounds = {"start": rows.start, "stop": rows.stop}
        stored = self._warehouse.run("finish/feature_documents", **self._place, **bounds).numpy()
        n_documents = len(self._run.document_ids)
        document = np.searchsorted(self._run.document_ids, stored.pop("document_id"))
        code = (stored.pop("feature").astype(np.int64) - rows.start) * n_documents + document
        of_pairs = rows.pair_feature * n_documents + rows.pair_document
        at = np.minimum(np.searchsorted(of_pairs, code), max(len(of_pairs) - 1, 0))
        known = of_pairs[at] == code if len(of_pairs) else np.zeros(len(code), dtype=bool)
        values = {name: np.ma.filled(np.ma.asarray(v).astype(np.float64), np.nan)[known] for name, v in stored.items()}
        return {name: np.bincount(at[known], v, len(of_pairs)) for name, v in values.items()}

    def _streamed(self, start: int, stop: int) -> dict[str, Floats]:
        """What the stream kept of features start … stop − 1, [cell, feature]."""
        stored = self._warehouse.run("finish/moments", **self._place, start=start, stop=stop).numpy()
        shape = int(self._run.group_cells.max(initial=-1)) + 1, stop - start
        where = stored["cell"], stored["feature"] - start
        result = {}
        for name in STREAMED:
            # sum_a2h2 is NULL without probes: NaN here, and NULL again in the frame.
            result[name] = np.zeros(shape)
            result[name][where] = np.ma.filled(np.ma.asarray(stored[name]).astype(np.float64), np.nan)
        return result

    def _sum_g(self, partition: Partition, decoder: Floats) -> Floats:
        """Σg [stratum, feature], from documents' vectors."""
        gradients = np.zeros((len(partition.strata), decoder.shape[1]))
        np.add.at(gradients, partition.of_documents, self._gradients)
        result: Floats = gradients @ decoder.T
        return result


def _attribution(
    keys: Keys, strata: StratumTokens, columns: Columns, has_tokens: NDArray[np.bool_], ag: Floats, effect: Floats
) -> Columns:
    """What attribution's interval and test are made of: every document with tokens takes part; p stands for q for now.

    ag, effect: first order, and with curvature where there is one [pair].
    """
    n, wanted = columns["n_documents"], strata.enough[keys.stratum]
    n_pairs, total = keys.sums(has_tokens, effect * has_tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = columns["sum_ag"] / n
    (of_pairs,) = keys.sums((ag - mean[keys.of_pair]) ** 2 * has_tokens)
    p = mean_p(keys, n, total, n_pairs, effect, has_tokens)
    spread = of_pairs + (n - n_pairs) * mean**2
    return {"sum_v2": np.where(wanted, spread, np.nan), "q_attribution": np.where(wanted, p, np.nan)}
