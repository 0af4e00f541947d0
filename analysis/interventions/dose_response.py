"""Patches at several doses in, the exponent p by which what they do grows out: of each feature, and of all together.

A series is a feature along its own decoder row, or along its control directions of one kind. Its size at a dose is the
mean over its patches of |ΔE|, or of KL, and p the slope of log size against log dose by least squares: size ∝ doseᵖ.
The mean is taken before the logarithm, since a single ΔE may pass through 0 as the dose grows.

Rounding does something too. A dose counts where the size is at least FLOOR times that of patches without an edit
(`doses`), from the largest dose down to the first that is not: a dose counts for all patches of a series or for none,
since those that happen to stand out from rounding would be the large ones, and p too small. Rounding is the mean over
all features or over the feature's own patches, whichever is more.

A mean over features takes those of MIN_PATCHES patches or more: of fewer, the mean before the logarithm is none.

Intervals leave out documents (Student's t, as many degrees of freedom as documents carry the error); those of a mean
over features leave out features too, as `agreement` does. Features and controls are compared over the same doses, since
a power law is not all there is to a curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.analysis.interventions.agreement import (
    MIN_DOCUMENTS,
    MIN_FEATURES,
    UNKNOWN,
    Agreement,
    Floats,
    Replicates,
    effective_number,
    jackknife_variance,
)
from energy_lens.ingest.statistics.significance import t_quantile

#: What grows with the dose.
MEASURES = ("delta_edited", "delta_total", "kl")

#: A size counts from so many times that of rounding on, which then makes at most a tenth of it.
FLOOR = 10.0

#: Patches that a feature must have for its exponent to enter a mean.
MIN_PATCHES = 5

#: Doses that must count, 1 included, for an exponent.
MIN_DOSES = 3

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Sizes:
    """What series of patches did, summed over the patches of each document; every patch at every dose."""

    doses: Floats  #: ascending [dose]
    sums: Floats  #: |ΔE| or KL, nats [series, document, dose]
    n_patches: Floats  #: [series, document]
    rounding: Floats  #: of one patch without an edit, nats [series]

    def __post_init__(self) -> None:
        """Raises ValueError for shapes that do not fit."""
        if self.sums.shape != (*self.n_patches.shape, len(self.doses)):
            raise ValueError(f"{self.sums.shape} are no sums of {self.n_patches.shape} at {len(self.doses)} doses.")

    def counting(self) -> Mask:
        """Doses that count [series, dose]."""
        n = np.maximum(self.n_patches.sum(1, keepdims=True), 1)
        size = self.sums.sum(1) / n
        stands_out = (size >= FLOOR * self.rounding[:, None]) & (size > 0)
        counts: Mask = np.logical_and.accumulate(stands_out[:, ::-1], axis=1)[:, ::-1]
        return counts

    def exponents(self, counting: Mask) -> Exponents:
        """p of each series over the doses that count for it [series, dose]."""
        total = self.sums.sum(1)
        whole = slopes(self.doses, total, counting)
        left = np.maximum(total[:, None] - self.sums, 0)
        # Where a document is left out that has no patch of the series, nothing changes.
        left = np.where(self.n_patches[..., None] > 0, left, total[:, None])
        without = slopes(self.doses, left, np.broadcast_to(counting[:, None], left.shape))
        return Exponents(whole, without, self.n_patches > 0)


@dataclass(frozen=True)
class Exponents:
    """p by series, of all documents and of all but each."""

    whole: Floats  #: [series]; NaN where fewer than MIN_DOSES count
    without: Floats  #: [series, document]; NaN where nothing is left
    has: Mask  #: whether a document has a patch of the series [series, document]

    def minus(self, other: Exponents) -> Exponents:
        """The differences, of the same features."""
        return Exponents(self.whole - other.whole, self.without - other.without, self.has | other.has)

    def intervals(self) -> list[Agreement]:
        """p of each series, with the bounds of its interval from MIN_DOCUMENTS documents on."""
        found = []
        for p, without, has in zip(self.whole, self.without, self.has, strict=True):
            half = np.nan
            if np.isfinite(p) and has.sum() >= MIN_DOCUMENTS:
                half = float(t_quantile(effective_number(without[has])) * np.sqrt(jackknife_variance(without[has])))
            found.append(Agreement(float(p), float(p) - half, float(p) + half))
        return found

    def mean(self) -> tuple[int, int, Agreement]:
        """How many series have a p, in how many documents, and its mean with an interval over documents and series."""
        known = np.isfinite(self.whole)
        p, has = self.whole[known], self.has[known]
        documents = has.any(0)
        n, n_documents = len(p), int(documents.sum())
        if n < MIN_FEATURES:
            return n, n_documents, UNKNOWN
        without = self.without[known][:, documents]
        without = np.where(np.isfinite(without), without, p[:, None])  # a feature of one document stays as it is
        whole = float(p.mean())
        replicates = Replicates(
            value=whole,
            documents=without.mean(0),
            features=(p.sum() - p) / (n - 1),
            cells=whole + (without - p[:, None]) / n,
            cell_share=1.0,
            sides=np.zeros(n_documents, dtype=np.int64),
        )
        return n, n_documents, replicates.plain()


def slopes(doses: Floats, sizes: Floats, counting: Mask) -> Floats:
    """Slopes [...] of log sizes against log doses, by least squares over the doses that count.

    doses: [dose]; sizes and counting: [..., dose]. NaN where fewer than MIN_DOSES count, or a counting size is 0.
    """
    x = np.where(counting, np.log(doses), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.where(counting, np.log(sizes), 0.0)
        n = counting.sum(-1)
        x = np.where(counting, x - (x.sum(-1) / n)[..., None], 0.0)
        slope = (x * y).sum(-1) / (x * x).sum(-1)
    found: Floats = np.where((n >= MIN_DOSES) & np.isfinite(slope), slope, np.nan)
    return found


# ------------------------------------------------------------------------------------------------ of an intervention


def dose_tables(points: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Rows of dose_statistics and of dose_summaries, without the intervention's keys; no tables without any patch.

    points: feature, control, direction, context_id, document_id, dose and MEASURES of each patch at each dose, as
    sql/interventions/doses.sql has them.
    """
    unedited, measured = points.filter(dose=0.0), points.filter(pl.col("dose") > 0)
    if measured.is_empty():
        return {}
    series = measured.select("feature", "control").unique(maintain_order=True)
    by_feature, together = [], []
    for measure in MEASURES:
        sizes = _sizes(measured, unedited, series, measure)
        by_feature.append(_statistics(series, sizes, measured, measure))
        together += list(_summaries(series, sizes, measure))
    summaries = pl.DataFrame(together, schema_overrides={"control": pl.String}, infer_schema_length=None)
    return {"dose_statistics": pl.concat(by_feature), "dose_summaries": summaries.fill_nan(None)}


def _sizes(measured: pl.DataFrame, unedited: pl.DataFrame, series: pl.DataFrame, measure: str) -> Sizes:
    """Sums of a measure by series, document and dose, beside what rounding does to patches without an edit."""
    doses, documents = (measured[name].unique().sort().to_numpy() for name in ("dose", "document_id"))
    numbered = measured.join(series.with_row_index("series"), on=["feature", "control"], nulls_equal=True)
    places = (
        numbered["series"].to_numpy(),
        np.searchsorted(documents, numbered["document_id"].to_numpy()),
        np.searchsorted(doses, numbered["dose"].to_numpy()),
    )
    sums, n = np.zeros((2, len(series), len(documents), len(doses)))
    np.add.at(sums, places, numbered[measure].to_numpy())
    np.add.at(n, places, 1)
    return Sizes(doses, sums, n[..., 0], _rounding(unedited, series, measure))


def _rounding(unedited: pl.DataFrame, series: pl.DataFrame, measure: str) -> Floats:
    """Of each series; infinite where nothing is known of it, so that no dose counts."""
    by_feature = unedited.group_by("feature").agg(own=pl.col(measure).mean())
    own = series.join(by_feature, on="feature", how="left", maintain_order="left")["own"]
    everywhere = float(unedited[measure].to_numpy().mean()) if len(unedited) else np.inf
    floor: Floats = np.fmax(own.to_numpy().astype(np.float64), everywhere)
    return floor


def _statistics(series: pl.DataFrame, sizes: Sizes, measured: pl.DataFrame, measure: str) -> pl.DataFrame:
    """Rows of dose_statistics for a measure, in the order of the series."""
    counting = sizes.counting()
    exponents = sizes.exponents(counting)
    smallest = np.where(counting.any(1), np.where(counting, sizes.doses, np.inf).min(1), np.nan)
    floors = series.with_columns(rounding=pl.Series(sizes.rounding))
    above = (
        measured.join(floors, on=["feature", "control"], nulls_equal=True)
        .group_by("feature", "control")
        .agg(above_floor=(pl.col(measure) >= FLOOR * pl.col("rounding")).mean())
    )
    rows = series.with_columns(
        pl.lit(measure).alias("measure"),
        *pl.DataFrame(exponents.intervals(), schema=["p", "p_low", "p_high"], orient="row"),
        n_patches=pl.Series(sizes.n_patches.sum(1).astype(np.int32)),
        n_documents=pl.Series(exponents.has.sum(1).astype(np.int32)),
        n_doses=pl.Series(counting.sum(1).astype(np.int32)),
        smallest_dose=pl.Series(smallest),
    )
    return rows.join(above, on=["feature", "control"], how="left", nulls_equal=True, maintain_order="left").fill_nan(
        None
    )


def _summaries(series: pl.DataFrame, sizes: Sizes, measure: str) -> Iterator[dict[str, Any]]:
    """Rows of dose_summaries for a measure: of features, then of each kind of control with the difference."""
    controls, features = series["control"].to_list(), series["feature"].to_list()
    counting, enough = sizes.counting(), sizes.n_patches.sum(1) >= MIN_PATCHES
    own = {feature: i for i, feature in enumerate(features) if controls[i] is None and enough[i]}
    for kind in dict.fromkeys(sorted(controls, key=lambda kind: kind is not None)):
        rows = np.array([i for i, control in enumerate(controls) if control == kind and enough[i]], dtype=np.int64)
        n, n_documents, p = _only(sizes, rows).exponents(counting[rows]).mean()
        row = {
            "control": kind, "measure": measure, "n_features": n, "n_documents": n_documents,
            "p": p.value, "p_low": p.low, "p_high": p.high,
        }  # fmt: skip
        # Of a feature with too few patches of its own there is nothing to compare.
        beside_own = np.array([i for i in rows if features[i] in own], dtype=np.int64)
        own_rows = np.array([own[features[i]] for i in beside_own], dtype=np.int64)
        both = counting[own_rows] & counting[beside_own]
        difference = _only(sizes, own_rows).exponents(both).minus(_only(sizes, beside_own).exponents(both))
        n_pairs, _, gap = difference.mean()
        pairs = {
            "n_pairs": n_pairs, "difference": gap.value, "difference_low": gap.low, "difference_high": gap.high,
        }  # fmt: skip
        yield row | (dict.fromkeys(pairs) if kind is None else pairs)


def _only(sizes: Sizes, rows: NDArray[np.int64]) -> Sizes:
    """Of some series."""
    return Sizes(sizes.doses, sizes.sums[rows], sizes.n_patches[rows], sizes.rounding[rows])
