"""Sums of one stratum in, columns of feature_statistics out: totals, intervals, tests, false discovery rates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.ingest.statistics.across_documents import TokenSums, enough, interval, mean_test
from energy_lens.ingest.statistics.significance import (
    MIN_TEST_CONTEXTS,
    MIN_TEST_DOCUMENTS,
    MIN_TEST_TOKENS,
    known_q,
    t_quantile,
    two_sided_p,
)
from energy_lens.ingest.statistics.strata import ALL, BOTH, RunLayout, Stratum

Floats = NDArray[np.float64]


def sums_of_stratum(
    stratum: Stratum, dense: Mapping[str, Floats], n_tokens: Floats, sum_g2: Floats
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


def across_documents(
    stratum: Stratum,
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


def tested(statistics: Mapping[str, Floats]) -> dict[str, Floats]:
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


def statistics_frame(
    run: RunLayout, layer: int, energy: str, gradient: str, stratum: Stratum, statistics: Mapping[str, Floats]
) -> pl.DataFrame:
    """Rows of feature_statistics; features that never fire in a stratum are kept for all documents only."""
    frame = pl.DataFrame({name: np.asarray(values) for name, values in statistics.items()})
    frame = frame.with_columns(pl.col(pl.Float64).fill_nan(None))
    frame = frame.with_columns(pl.col(name).cast(pl.Int64) for name in _INTEGER_COLUMNS if name in frame.columns)
    if (stratum.category, stratum.half) != (ALL, BOTH):
        frame = frame.filter(pl.col("n_active") > 0)
    place = {"layer": layer, "energy": energy, "gradient": gradient, "category": stratum.category, "half": stratum.half}
    return frame.with_columns(run_id=pl.lit(run.run_id), **{name: pl.lit(value) for name, value in place.items()})
