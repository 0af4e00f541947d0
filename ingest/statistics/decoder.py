"""A slice of a layer's activations in, columns of feature_statistics for the decoder gradient of an energy out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from energy_lens.ingest.statistics.activations import Slice
from energy_lens.ingest.statistics.columns import Columns, Pairs, StratumTokens, common
from energy_lens.ingest.statistics.document_moments import Documents, Moments
from energy_lens.ingest.statistics.intervals import PairSums, Totals, interval, mean_p
from energy_lens.ingest.statistics.kernels import activity_sums, add_rows, pair_sums
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.shared_directions import AlongDirections, DirectionSums
from energy_lens.ingest.statistics.strata import Partition, RunLayout, summed
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

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
    def of(cls, rows: Slice, counted: NDArray[np.bool_], n_counted: Floats) -> Activity:
        """counted: [token] those of the within-context test; n_counted: how many of them [context]."""
        n_active, a, a2, ac2, n = activity_sums(
            rows.cells, rows.cell_pairs, rows.place, rows.a, counted, n_counted[rows.cell_context]
        )
        return cls(n_active, a, a2, ac2, n > 0)


class StoredSums(NamedTuple):
    """What the stream kept of some features."""

    first: int  #: feature
    kept_codes: Integers  #: [n] feature times documents, plus document, ascending
    kept: dict[str, Floats]  #: of those, over all groups [n]
    streamed: Floats  #: [cell, feature, name]
    along: DirectionSums


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
        self._documents = Documents(run, n, norm2, self._gradients)
        self._gradient_sums = [self._by_stratum(partition) for partition in run.partitions]
        self._run_g = self._rows @ self._documents.mean
        self._strata = [StratumTokens.of(partition, n) for partition in run.partitions]
        self._along = AlongDirections(warehouse, run, layer, energy, decoder)

    def read(self, start: int, stop: int) -> StoredSums:
        """Stored sums of features start … stop − 1."""
        bounds = {"start": start, "stop": stop}
        return StoredSums(start, *self._read_kept(bounds), self._read_streamed(bounds), self._along.read(start, stop))

    def statistics(self, rows: Slice, stored: StoredSums, keys_of: Sequence[Keys], activity: Activity) -> list[Columns]:
        """Columns of each partition of the run. stored: of the slice's features. keys_of: its keys in each."""
        kept = self._kept(rows, stored)
        ag, active_g, active_g2 = pair_sums(rows.pairs, rows.a, rows.g[self._energy])
        pairs = Pairs(
            activity.n_active, activity.a, activity.a2, ag, active_g, active_g2, activity.ac2, activity.counted,
            kept["sum_s"],
        )  # fmt: skip
        n, weight = (of[rows.pair_document] for of in (self._documents.n, self._documents.w))
        decoder, moments = self._rows[rows.start : rows.stop], None
        if any(strata.enough.any() for strata in self._strata):
            moments = self._documents.moments(decoder, rows.pair_feature, rows.pair_document)
        share = np.maximum(weight - kept["sum_norm2"], 0)
        sums = PairSums(n, activity.a, activity.a2, ag, weight, kept["sum_g2"], share)
        of_slice = slice(rows.start - stored.first, rows.stop - stored.first)
        result = []
        for partition, keys, strata, gradients in zip(
            self._run.partitions, keys_of, self._strata, self._gradient_sums, strict=True
        ):
            columns = common(keys, strata, pairs, rows.start)
            streamed = partition.of(stored.streamed[:, of_slice])[keys.stratum, keys.feature]
            columns |= dict(zip(STREAMED, streamed.T, strict=True))
            columns["sum_g"] = (gradients @ decoder.T)[keys.stratum, keys.feature]
            columns |= self._across(keys, partition, strata, sums, columns, moments)
            effect = ag + np.nan_to_num(kept["sum_a2h2"]) / 2
            columns |= _attribution(keys, strata, columns, n > 0, ag, effect)
            columns |= self._along.test(keys, partition, rows, columns, stored.along)
            result.append(columns)
        return result

    def _across(
        self,
        keys: Keys,
        partition: Partition,
        strata: StratumTokens,
        sums: PairSums,
        columns: Columns,
        moments: Moments | None,
    ) -> Columns:
        """What the interval of the correlation is made of."""
        nothing = np.full(len(keys), np.nan)
        if moments is None:
            return {"sum_i2": nothing, "i_quantile": nothing}
        weights = summed(self._documents.w, partition.of_documents, len(partition.strata))
        totals = Totals(
            columns["n_tokens"], weights[keys.stratum], self._run_g[columns["feature"].astype(np.int64)],
            columns["sum_g"], columns["sum_g2"],
        )  # fmt: skip
        i2, quantile = interval(keys, partition, sums, totals, moments)
        wanted = strata.enough[keys.stratum]
        return {"sum_i2": np.where(wanted, i2, nothing), "i_quantile": np.where(wanted, quantile, nothing)}

    # -------------------------------------------------------------------------------------------- stored sums

    def _document_gradients(self) -> tuple[Floats, Floats, Floats]:
        """Tokens and Σ‖∇‖² [document], and Σ∇ [document, d_model], summed in group order."""
        stored = self._warehouse.frame("finish/document_sums", **self._place)
        n_documents, d_model = len(self._run.document_ids), self._rows.shape[1]
        where = np.searchsorted(self._run.document_ids, stored["document_id"].to_numpy())
        n, norm2 = (summed(stored[name].to_numpy(), where, n_documents) for name in ("n_tokens", "sum_norm2"))
        gradients = np.zeros((n_documents, d_model))
        add_rows(gradients, where, stored["gradient_sum"].explode().to_numpy().reshape(-1, d_model))
        return n, norm2, gradients

    def _by_stratum(self, partition: Partition) -> Floats:
        """Σ∇ [stratum, d_model]."""
        gradients = np.zeros((len(partition.strata), self._rows.shape[1]))
        add_rows(gradients, partition.of_documents, self._gradients)
        return gradients

    def _read_kept(self, bounds: dict[str, int]) -> tuple[Integers, dict[str, Floats]]:
        """What the stream kept, over all groups [n], and of which pairs: feature times documents, plus document [n]."""
        stored = self._warehouse.run("finish/feature_documents", **self._place, **bounds).numpy()
        n_documents = len(self._run.document_ids)
        document = np.searchsorted(self._run.document_ids, stored.pop("document_id"))
        code = stored.pop("feature").astype(np.int64) * n_documents + document
        order = np.argsort(code, kind="stable")  # what is sorted by group already takes little time
        starts = np.flatnonzero(np.diff(code[order], prepend=-1))
        values = {name: np.ma.filled(np.ma.asarray(v).astype(np.float64), np.nan) for name, v in stored.items()}
        if not len(starts):
            return code, values
        return code[order][starts], {name: np.add.reduceat(v[order], starts) for name, v in values.items()}

    def _kept(self, rows: Slice, stored: StoredSums) -> dict[str, Floats]:
        """The same [pair]; 0 where the stream kept nothing."""
        code = (rows.pair_feature + rows.start) * len(self._run.document_ids) + rows.pair_document
        found = np.searchsorted(stored.kept_codes, code)
        found[found == len(stored.kept_codes)] = 0
        if not len(stored.kept_codes):
            return {name: np.zeros(len(code)) for name in stored.kept}
        known = stored.kept_codes[found] == code
        return {name: np.where(known, values[found], 0) for name, values in stored.kept.items()}

    def _read_streamed(self, bounds: dict[str, int]) -> Floats:
        """What the stream kept of features start … stop − 1, [cell, feature, name]."""
        stored = self._warehouse.run("finish/moments", **self._place, **bounds).numpy()
        n_features = bounds["stop"] - bounds["start"]
        result = np.zeros((self._run.n_cells, n_features, len(STREAMED)))
        where = stored["cell"], stored["feature"] - bounds["start"]
        for i, name in enumerate(STREAMED):
            # sum_a2h2 is NULL without probes: NaN here, and NULL again in the frame.
            result[(*where, i)] = np.ma.filled(np.ma.asarray(stored[name]).astype(np.float64), np.nan)
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
    (of_pairs,) = keys.sums(np.square(ag - mean[keys.of_pair]) * has_tokens)
    p = mean_p(keys, n, total, n_pairs, effect, has_tokens)
    spread = of_pairs + (n - n_pairs) * mean**2
    return {"sum_v2": np.where(wanted, spread, np.nan), "q_attribution": np.where(wanted, p, np.nan)}
