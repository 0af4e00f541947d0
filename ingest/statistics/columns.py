"""Sums of pairs of feature and document in, columns of feature_statistics out: totals, tests, false discovery rates.

What the decoder gradient and the discrete one have in common. Columns are arrays by key, a feature in a stratum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.statistics.across_documents import enough
from energy_lens.ingest.statistics.intervals import mean_p
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.significance import (
    MIN_TEST_CONTEXTS,
    MIN_TEST_DOCUMENTS,
    MIN_TEST_TOKENS,
    known_q,
    t_quantile,
    two_sided_p,
)
from energy_lens.ingest.statistics.strata import Partition, RunLayout, summed

Floats = NDArray[np.float64]

#: Columns of feature_statistics, by name [key].
Columns = dict[str, Floats]

#: Places of `Columns` in their stratum's partition, and their features.
STRATUM, FEATURE = "stratum", "feature"


@dataclass(frozen=True)
class Pairs:
    """Sums over the tokens of a document at which the feature is active [pair]."""

    n_active: Floats
    a: Floats
    a2: Floats
    ag: Floats
    g: Floats
    g2: Floats
    ac2: Floats  #: Σã² over counted tokens
    counted: NDArray[np.bool_]  #: active at a counted token
    s: Floats  #: ΣS_c over the document's contexts


@dataclass(frozen=True)
class StratumTokens:
    """Of each stratum of a partition [stratum]."""

    n: Floats  #: tokens
    n_documents: Floats  #: documents with tokens
    enough: NDArray[np.bool_]  #: for intervals across documents
    quantile: Floats  #: of Student's t with n_documents − 1 degrees of freedom; NaN where they are not enough

    @classmethod
    def of(cls, partition: Partition, n: Floats) -> StratumTokens:
        """n: tokens [document]."""
        n_strata = len(partition.strata)
        n_documents = summed(n > 0, partition.of_documents, n_strata)
        order = np.argsort(partition.of_documents, kind="stable")
        parts = np.split(n[order], np.searchsorted(partition.of_documents[order], np.arange(1, n_strata)))
        is_enough = np.array([enough(part) for part in parts])
        quantile = np.where(is_enough, t_quantile(np.maximum(n_documents - 1, 1)), np.nan)
        return cls(summed(n, partition.of_documents, n_strata), n_documents, is_enough, quantile)


def common(keys: Keys, strata: StratumTokens, pairs: Pairs, first_feature: int) -> Columns:
    """What both gradients have, without what needs more than these sums."""
    columns: Columns = {
        STRATUM: keys.stratum.astype(np.float64),
        FEATURE: (keys.feature + first_feature).astype(np.float64),
    }
    taking_part = pairs.s != 0
    of_pairs = {
        "n_active": pairs.n_active, "sum_a": pairs.a, "sum_a2": pairs.a2, "sum_ag": pairs.ag, "active_g": pairs.g,
        "active_g2": pairs.g2, "sum_ac2": pairs.ac2, "n_counted_documents": pairs.counted,
        "n_s_documents": taking_part, "sum_sd2": pairs.s**2, "sum_of_s": pairs.s,
    }  # fmt: skip
    columns |= dict(zip(of_pairs, keys.sums(*of_pairs.values()), strict=True))
    columns["n_tokens"], columns["n_documents"] = strata.n[keys.stratum], strata.n_documents[keys.stratum]
    columns["t_quantile"] = strata.quantile[keys.stratum]
    n, total = columns["n_s_documents"], columns.pop("sum_of_s")
    columns["p_documents"] = mean_p(keys, n, total, n, pairs.s, taking_part)
    return columns


# ------------------------------------------------------------------------------------------------ of whole layers


def concatenated(parts: Sequence[Columns]) -> Columns:
    """Columns of all slices of a layer."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def tested(columns: Mapping[str, Floats]) -> Columns:
    """With p, and q of every p within its stratum; NaN where the feature has too little to test."""
    testable = (
        (columns["n_counted"] >= MIN_TEST_TOKENS)
        & (columns["n_counted_contexts"] >= MIN_TEST_CONTEXTS)
        & (columns["n_counted_documents"] >= MIN_TEST_DOCUMENTS)
        & (columns["sum_s2"] > 0)
    )
    nothing = np.full(len(testable), np.nan)
    whole = dict(columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole["p_value"] = two_sided_p(columns["sum_s"] / np.sqrt(columns["sum_s2"]))
    for name in ("p_value", "t_specific", "p_specific", "p_reference", "cosine", "p_documents"):
        whole[name] = np.where(testable, whole.get(name, nothing), np.nan)
    for p, q in (("p_value", "q_value"), ("p_specific", "q_specific"), ("p_documents", "q_documents")):
        whole[q] = _q_by_stratum(whole[p], whole[STRATUM])
    effects = np.where(whole["n_active"] > 0, whole["q_attribution"], np.nan)
    whole["q_attribution"] = _q_by_stratum(effects, whole[STRATUM])
    return whole


def _q_by_stratum(p: Floats, stratum: NDArray[np.number]) -> Floats:
    order = np.argsort(stratum, kind="stable")
    bounds = np.flatnonzero(np.diff(stratum[order], prepend=-1, append=-1))
    q = np.full(len(p), np.nan)
    for start, stop in pairwise(bounds):
        of_stratum = order[start:stop]
        q[of_stratum] = known_q(p[of_stratum])
    return q


_INTEGER_COLUMNS = (
    "n_tokens", "n_active", "n_documents", "n_counted", "n_counted_contexts", "n_counted_documents", "n_s_documents",
)  # fmt: skip


def statistics_frame(
    run: RunLayout, layer: int, energy: str, gradient: str, partition: Partition, columns: Mapping[str, Floats]
) -> pl.DataFrame:
    """Rows of feature_statistics, by stratum and feature; features that never fire are kept for all documents only."""
    order = np.lexsort((columns[FEATURE], columns[STRATUM]))
    ordered = {name: np.asarray(values)[order] for name, values in columns.items()}
    stratum = ordered.pop(STRATUM).astype(np.int64)
    frame = pl.DataFrame(ordered).with_columns(
        pl.col(pl.Float64).fill_nan(None),
        **{name: pl.Series([s[i] for s in partition.strata], dtype=pl.String).gather(stratum)
           for i, name in enumerate(("category", "half"))},
    )  # fmt: skip
    if not partition.is_whole:
        frame = frame.filter(pl.col("n_active") > 0)
    place = {"run_id": run.run_id, "layer": layer, "energy": energy, "gradient": gradient}
    return frame.with_columns(
        *(pl.col(name).cast(pl.Int64) for name in _INTEGER_COLUMNS),
        pl.col(FEATURE).cast(pl.Int32),
        **{name: pl.lit(value) for name, value in place.items()},
    )
