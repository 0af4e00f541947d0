"""Intervals of `predictor_validation` and `intervention_effects` on simulated patches: how often they hold the truth.

    python benchmarks/predictor_intervals.py --repetitions 400

A repetition draws documents and features anew. Feature j does n_jd edits in document d and each of them costs
T_j·m_d + s_d·U_j nats, and chance of every patch; the score that predicts it sees the same patches, or those of other
documents (transfer). T and U are heavy-tailed, n is 0 in most documents of a rare feature, m_d and s_d are the
document's own. What an interval must hold is the average of the correlation over all repetitions (of Fisher's z), and
for a disattenuated one the average correlation of the prediction with T itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from energy_lens.analysis.interventions.agreement import (
    Comparison,
    Replicates,
    Values,
    means_without,
    ratio_interval,
    replicates,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Situation:
    """What patches are simulated; standard deviations are in units of a typical T_j."""

    n_features: int
    n_documents: int  #: of one side
    is_transfer: bool = False
    chance: float = 1.0  #: of a patch's effect, by edit
    own_chance: float = 1.0  #: of its prediction
    documents: float = 0.5  #: of log m_d and of s_d
    error: float = 1.0  #: of what the score takes for T_j

    def __str__(self) -> str:
        plain = f"{self.n_features} features, {self.n_documents} documents" + (" a half" if self.is_transfer else "")
        return f"{plain}, chance {self.chance:g}, documents {self.documents:g}"


class Side(NamedTuple):
    """Sums over patches, [feature, document]."""

    edits: Floats
    predicted: Floats
    measured: Floats


SITUATIONS = (
    Situation(60, 20),
    Situation(60, 40),
    Situation(200, 40),
    Situation(200, 40, documents=1.0),
    Situation(200, 20, chance=3.0, own_chance=3.0),
    Situation(60, 20, is_transfer=True),
    Situation(200, 20, is_transfer=True),
    Situation(200, 20, is_transfer=True, chance=8.0),
    Situation(200, 40, is_transfer=True, chance=8.0),
)


def draw(situation: Situation, generator: np.random.Generator) -> tuple[list[Side], Floats]:
    """The sides of a repetition, one or two, and what a feature's edits cost on average over documents [feature]."""
    n = situation.n_features
    true, other = (generator.standard_normal(n) * np.exp(0.7 * generator.standard_normal(n)) for _ in range(2))
    taken = true + situation.error * generator.standard_normal(n)
    rate = np.exp(generator.standard_normal(n))
    sides = []
    for _ in range(1 + situation.is_transfer):
        d = situation.n_documents
        size, topic = np.exp(0.5 * generator.standard_normal(d)), np.exp(generator.standard_normal((n, d)))
        edits = generator.poisson(rate[:, None] * size * topic).astype(np.float64)
        m = np.exp(situation.documents * generator.standard_normal(d) - situation.documents**2 / 2)
        s = situation.documents * generator.standard_normal(d)
        cost = true[:, None] * m + s * other[:, None]
        noise = [generator.standard_normal((n, d)) * np.sqrt(edits) for _ in range(2)]
        measured = edits * cost + situation.chance * noise[0]
        predicted = edits * (taken[:, None] * m) + situation.own_chance * noise[1] + situation.chance * noise[0] / 2
        sides.append(Side(edits, predicted, measured))
    scale = rate * np.exp(0.5**2 / 2 + 0.5)
    return sides, true * scale


def read(sides: list[Side], of: Comparison) -> tuple[Replicates, Replicates | None]:
    """The agreement of sums, and between two halves the reliability."""
    predicted, measured = (means_without(sums) for sums in (sides[0].predicted, sides[0].measured))
    n = len(measured.without)
    if len(sides) == 1:
        return replicates(predicted, measured, np.zeros(n, dtype=np.int64), of), None
    last = means_without(sides[1].measured)
    after = Values(last.whole, np.concatenate([np.tile(last.whole, (n, 1)), last.without]))
    agreements = [
        replicates(
            Values(v.whole, np.concatenate([v.without, np.tile(v.whole, (n, 1))])), after, np.repeat([0, 1], n), of
        )
        for v in (predicted, measured)
    ]
    return agreements[0], agreements[1]


class Coverage(NamedTuple):
    """Of one situation and kind of correlation."""

    centre: float  #: what intervals must hold
    share: float  #: of intervals that hold it
    width: float  #: median
    reliability: float  #: mean; NaN for the same documents
    disattenuated: float  #: what they must hold: the mean correlation with T itself
    shown: float  #: share of repetitions with a disattenuated value
    shown_share: float  #: of these that hold it


def coverage(situation: Situation, of: Comparison, repetitions: int, seed: int = 0) -> Coverage:
    """How often the intervals of repetitions hold the average of all."""
    generator = np.random.default_rng(seed)
    agreements, corrected, reliabilities, with_truth = [], [], [], []
    for _ in range(repetitions):
        sides, true = draw(situation, generator)
        own, reliability = read(sides, of)
        agreements.append(own.agreement())
        if reliability is not None:
            corrected.append(own.disattenuated(reliability))
            reliabilities.append(reliability.value)
            with_truth.append(of.of(sides[0].predicted.sum(1)[None], true[None])[0])
    values, low, high = np.array(agreements).T
    centre = float(np.tanh(np.arctanh(values).mean()))
    holds = (low < centre) & (centre < high)
    if not corrected:
        return Coverage(centre, float(holds.mean()), float(np.median(high - low)), *[np.nan] * 4)
    bounds, truth = np.array(corrected)[:, 1:], float(np.mean(with_truth))
    shown = np.isfinite(bounds).all(1)
    inside = ((bounds[:, 0] < truth) & (truth < bounds[:, 1]))[shown]
    return Coverage(
        centre, float(holds.mean()), float(np.median(high - low)), float(np.mean(reliabilities)), truth,
        float(shown.mean()), float(inside.mean()) if shown.any() else np.nan,
    )  # fmt: skip


def ratio_coverage(n_documents: int, spread: float, repetitions: int, seed: int = 0) -> float:
    """How often `ratio_interval` holds the effect by edited token, which is log-normal over documents (`spread`)."""
    generator = np.random.default_rng(seed)
    shape = (repetitions, n_documents)
    edits = 1 + generator.poisson(5 * np.exp(spread * generator.standard_normal(shape))).astype(np.float64)
    cost = 0.3 * np.exp(spread * generator.standard_normal(shape) - spread**2 / 2)
    low, high = ratio_interval(edits * cost + 0.5 * np.sqrt(edits) * generator.standard_normal(shape), edits)
    return float(((low < 0.3) & (high > 0.3)).mean())


def lines(repetitions: int) -> Iterator[str]:
    """Tables in Markdown, line by line."""
    yield "| situation | correlation | centre | covers | width | reliability | disattenuated | shown | covers |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for situation in SITUATIONS:
        for kind, of in (("Spearman", Comparison(of_ranks=True)), ("Pearson", Comparison(of_ranks=False))):
            found = coverage(situation, of, repetitions)
            cells = [f"{found.centre:.2f}", f"{found.share:.1%}", f"{found.width:.2f}", f"{found.reliability:.2f}"]
            cells += [f"{found.disattenuated:.2f}", f"{found.shown:.0%}", f"{found.shown_share:.1%}"]
            shown = cells if situation.is_transfer else cells[:3] + ["–"] * 4
            yield f"| {situation} | {kind} | {' | '.join(shown)} |"
    yield ""
    yield "| documents | spread | an effect's interval covers |"
    yield "|--:|--:|--:|"
    for n_documents in (15, 20, 40):
        for spread in (0.0, 0.5, 0.8):
            yield f"| {n_documents} | {spread:g} | {ratio_coverage(n_documents, spread, 10 * repetitions):.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400)
    for line in lines(parser.parse_args().repetitions):
        print(line, flush=True)


if __name__ == "__main__":
    main()
