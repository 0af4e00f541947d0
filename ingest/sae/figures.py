"""Sums over tokens in, an SAE's figures out: FVU, cosine, L0, dead share, loss recovered, by category and in all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy_lens.warehouse.quality import COUNTS, STORED_FIGURES

#: A feature that fires on more than this share of the included tokens is dense.
DENSE_SHARE = 0.10

#: What an included residual is replaced by.
ARMS = ("sae", "zero", "mean")


@dataclass(frozen=True)
class Figures:
    """An SAE's, over a category's tokens or all; None where nothing was there to measure, or was not asked for."""

    n_documents: int  #: with an included token
    n_tokens: int  #: included
    n_excluded: int  #: not included: first of their context, massive, special, or without a next token
    n_massive: int  #: of these, excluded for their norm
    l0: float | None  #: mean number of active features a token
    fvu: float | None  #: fraction of variance unexplained
    cosine: float | None  #: mean cosine of x and x̂
    dead_share: float | None  #: of the features, those that fire on none of these n_tokens: the fewer, the more
    dense_share: float | None  #: of the features, those that fire on more than DENSE_SHARE of them
    n_loss_tokens: int  #: tokens whose loss counts, in the part of the sample on which losses are measured
    ce_clean: float | None  #: mean loss of the model as it is, nats per token; so are the next three
    ce_sae: float | None  #: with x̂ for x at included tokens
    ce_zero: float | None  #: with 0
    ce_mean: float | None  #: with the mean
    delta_ce: float | None  #: ce_sae − ce_clean
    ce_recovered_zero: float | None  #: (ce_zero − ce_sae) / (ce_zero − ce_clean); says little where ablation is cheap
    ce_recovered_mean: float | None  #: the same with ce_mean


@dataclass(frozen=True)
class Evaluation:
    """One SAE's figures and what they were measured on."""

    layer: int
    sae_sha256: str
    source: str  #: the folder it was loaded from
    all: Figures
    macro: Figures  #: means over the categories that have a figure; the counts are those of `all`
    categories: dict[str, Figures]
    measured_on: dict[str, Any]  #: tokens, documents and settings, and where its norm median and mean come from
    notes: list[str]  #: what a reader of the figures must know, a sentence each

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: every figure, and what they were measured on."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in ("all", "macro", "categories", "measured_on")}

    def metadata(self) -> dict[str, Any]:
        """What an SAE keeps of it in `metadata`: the pooled figures that the table `saes` has, and all of it."""
        pooled = {name: getattr(self.all, name) for name in STORED_FIGURES}
        return {**pooled, "evaluation": self.as_dict()}


@dataclass
class Spread:
    """n, mean and Σ‖x − mean‖² of vectors, in float64, merged part by part (Chan et al. 1983): nothing cancels."""

    n: int
    mean: NDArray[np.float64]
    squares: float = 0.0

    @classmethod
    def of(cls, x: NDArray[np.float64]) -> Spread:
        """x: [n, d], n >= 1"""
        mean = x.mean(0)
        return cls(len(x), mean, float(np.square(x - mean).sum()))

    def merge(self, other: Spread) -> None:
        n = self.n + other.n
        if other.n:
            step = other.mean - self.mean
            self.squares += other.squares + float(step @ step) * self.n * other.n / n
            self.mean = self.mean + step * (other.n / n)
            self.n = n


@dataclass
class Sums:
    """What figures are made of, over the tokens of a category."""

    spread: Spread
    fired: NDArray[np.int64]  #: [d_sae] tokens on which each feature is active
    documents: set[int] = field(default_factory=set)
    n_excluded: int = 0
    n_massive: int = 0
    error: float = 0.0  #: Σ‖x − x̂‖²
    cosine: float = 0.0  #: Σ cos(x, x̂)
    n_loss_tokens: int = 0
    losses: dict[str, float] = field(default_factory=dict)  #: arm or "clean": Σ of nats

    @classmethod
    def empty(cls, d_model: int, d_sae: int) -> Sums:
        return cls(Spread(0, np.zeros(d_model)), np.zeros(d_sae, dtype=np.int64))

    def merge(self, other: Sums) -> None:
        self.spread.merge(other.spread)
        self.fired = self.fired + other.fired
        self.documents |= other.documents
        for name in ("n_excluded", "n_massive", "error", "cosine", "n_loss_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for arm, total in other.losses.items():
            self.losses[arm] = self.losses.get(arm, 0.0) + total

    def figures(self) -> Figures:
        """What the sums come to."""
        n = self.spread.n
        clean, sae, zero, mean = (_ratio(self.losses.get(arm), self.n_loss_tokens) for arm in ("clean", *ARMS))
        return Figures(
            n_documents=len(self.documents),
            n_tokens=n,
            n_excluded=self.n_excluded,
            n_massive=self.n_massive,
            l0=_ratio(float(self.fired.sum()), n),
            fvu=_ratio(self.error, self.spread.squares) if n else None,
            cosine=_ratio(self.cosine, n),
            dead_share=float((self.fired == 0).mean()) if n else None,
            dense_share=float((self.fired > DENSE_SHARE * n).mean()) if n else None,
            n_loss_tokens=self.n_loss_tokens,
            ce_clean=clean,
            ce_sae=sae,
            ce_zero=zero,
            ce_mean=mean,
            delta_ce=_difference(sae, clean),
            ce_recovered_zero=_ratio(_difference(zero, sae), _difference(zero, clean)),
            ce_recovered_mean=_ratio(_difference(mean, sae), _difference(mean, clean)),
        )


def _ratio(above: float | None, below: float | None) -> float | None:
    """A quotient; None where there is none, or no finite one."""
    if above is None or not below:
        return None
    value = above / below
    return value if math.isfinite(value) else None


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def macro_average(pooled: Figures, categories: Sequence[Figures]) -> Figures:
    """The mean over categories of each figure, where a category has it; the counts are the pooled ones."""
    averages: dict[str, Any] = {}
    for name in (entry.name for entry in dataclasses.fields(Figures)):
        values = [value for of_category in categories if (value := getattr(of_category, name)) is not None]
        average = math.fsum(values) / len(values) if values else None
        averages[name] = getattr(pooled, name) if name in COUNTS else average
    return Figures(**averages)
