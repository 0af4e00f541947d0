"""Patches and readings of an intervention in, how well each predictor agrees with the measured effects out.

`same` compares on the same documents, `transfer` predicts on those of half A and measures on those of half B. Every
figure of a feature is an array [1 + document, feature]: from all documents first, then without each one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from energy_lens.analysis.interventions.agreement import (
    UNKNOWN,
    Agreement,
    Comparison,
    Floats,
    Ids,
    Replicates,
    Values,
    replicates,
)
from energy_lens.analysis.interventions.predictors import PREDICTORS, alignment
from energy_lens.ingest.statistics.histograms import ACTIVATION_BINS, GRADIENT_BINS

#: What a partial correlation takes as known: how many tokens were edited, and how far.
CONTROLS = ("n_edited", "sum_change2")

#: The two correlations that are kept.
KINDS = {"spearman": Comparison(of_ranks=True), "pearson": Comparison(of_ranks=False)}


@dataclass(frozen=True)
class Side:
    """The documents that something is predicted or measured on."""

    patches: pl.DataFrame  #: of features themselves, no random directions
    readings: pl.DataFrame  #: empty for an intervention of before there were any
    features: list[int]  #: those that are compared, ascending
    documents: Ids  #: ascending

    def sums(self, column: str) -> Floats:
        """Σ of a column over a feature's patches."""
        return self._left_out(self._by_document(self.patches, self.patches[column].to_numpy()))

    def read(self, column: str) -> Floats:
        """Σ of a column of the readings; of `cells` [1 + document, feature, cell]."""
        values = self.readings[column]
        return self._left_out(
            self._by_document(
                self.readings, np.stack(values.to_list()) if values.dtype == pl.List else values.to_numpy()
            )
        )  # fmt: skip

    def averaged(self, sums: Floats) -> Floats:
        """Means over the documents that are left, so that leaving one out does not shrink a figure by itself."""
        n = len(self.documents)
        averages: Floats = sums / np.concatenate([[n], np.full(n, max(n - 1, 1))])[:, None]
        return averages

    def with_quartiles(self) -> Side:
        """Without the readings that were not binned."""
        return Side(self.patches, self.readings.drop_nulls("cells"), self.features, self.documents)

    def _by_document(self, frame: pl.DataFrame, values: NDArray[Any]) -> Floats:
        known = np.isin(frame["feature"].to_numpy(), self.features)
        sums = np.zeros((len(self.features), len(self.documents), *values.shape[1:]))
        rows = np.searchsorted(self.features, frame["feature"].to_numpy()[known])
        columns = np.searchsorted(self.documents, frame["document_id"].to_numpy()[known])
        np.add.at(sums, (rows, columns), values[known].astype(np.float64))
        return sums

    @staticmethod
    def _left_out(by_document: Floats) -> Floats:
        total = by_document.sum(1, keepdims=True)
        rows: Floats = np.moveaxis(np.concatenate([total, total - by_document], axis=1), 1, 0)
        return rows


class Predictions(NamedTuple):
    """By predictor: what is compared with summed effects, and what with effects by edited token."""

    summed: dict[str, Floats]
    per_token: dict[str, Floats]


def validations(
    patches: pl.DataFrame, readings: pl.DataFrame, documents: pl.DataFrame, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of predictor_statistics, without the backward passes: on the same tokens, and from half A to half B.

    patches: of features themselves; documents: document_id and half of the intervention's contexts.
    """
    whole = _side(patches, readings, documents)
    yield from _validation("same", whole, whole, seed)
    halves = [
        _side(*(frame.filter(pl.col("half") == half) for frame in (patches, readings, documents))) for half in "AB"
    ]
    if all(len(side.patches) for side in halves):
        yield from _validation("transfer", halves[0], halves[1], seed)


def _side(patches: pl.DataFrame, readings: pl.DataFrame, documents: pl.DataFrame) -> Side:
    measured = patches.with_columns(measured=pl.col("delta_edited") + pl.col("delta_later"))
    return Side(measured, readings, sorted(set(patches["feature"])), documents["document_id"].to_numpy())


def _validation(name: str, before: Side, after: Side, seed: int) -> Iterator[dict[str, Any]]:
    """Every predictor against the measurement, over the features that have patches on both sides."""
    features = sorted(set(before.features) & set(after.features))
    if len(features) < 2:
        return
    before, after = (Side(side.patches, side.readings, features, side.documents) for side in (before, after))
    is_transfer = name == "transfer"
    predictions = predict_all(before, seed)
    n_edited, measured = after.sums("n_edited"), after.sums("measured")
    if is_transfer:
        effects = before.sums("measured")
        predictions.summed["measured"] = before.averaged(effects)
        predictions.per_token["measured"] = _ratio(effects, before.sums("n_edited"))
    sides = np.repeat([0, 1], [len(before.documents), len(after.documents)]) if is_transfer else before.documents * 0

    def compared(predicted: Floats, outcome: Floats, comparison: Comparison) -> Replicates:
        pair = _apart(predicted, outcome) if is_transfer else (_values(predicted), _values(outcome))
        return replicates(*pair, sides, comparison, seed)

    place = {"validation": name, "n_features": len(features), "n_documents": len(sides)}
    outcome = after.averaged(measured)
    for target, predicted, effect in (
        ("sum", predictions.summed, outcome),
        ("per_token", predictions.per_token, _ratio(measured, n_edited)),
    ):
        yield from _correlations({**place, "target": target}, predicted, effect, compared)
    ranks = Comparison(of_ranks=True, controls=tuple(before.sums(column)[0] for column in CONTROLS))
    for predictor, values in predictions.summed.items():
        if predictor not in CONTROLS:
            row = {**place, "target": "partial", "predictor": predictor}
            agreement = compared(values, outcome, ranks).agreement()
            yield {**row, **_columns("spearman", agreement), **_columns("pearson", UNKNOWN)} | _disattenuated({})


def _correlations(
    place: Mapping[str, Any],
    predictions: Mapping[str, Floats],
    measured: Floats,
    compared: Callable[[Floats, Floats, Comparison], Replicates],
) -> Iterator[dict[str, Any]]:
    """Rows of predictor_statistics for one target; with predictions `measured`, disattenuated by their reliability."""
    found = {
        predictor: {kind: compared(values, measured, comparison) for kind, comparison in KINDS.items()}
        for predictor, values in predictions.items()
    }
    reliable = predictions.get("measured")
    for predictor, kinds in found.items():
        row = {**place, "predictor": predictor}
        for kind, own in kinds.items():
            row |= _columns(kind, own.agreement())
        corrected = {}
        if reliable is not None:
            values = predictions[predictor]
            # A prediction may have no number for a feature, and r and ρ must be of the same ones.
            shared = np.isfinite(values[0]) & np.isfinite(reliable[0])
            for kind, comparison in KINDS.items():
                r, rho = (kinds[kind], found["measured"][kind]) if shared.all() else (
                    compared(np.where(shared, sums, np.nan), measured, comparison) for sums in (values, reliable)
                )  # fmt: skip
                corrected[kind] = r.disattenuated(rho)
        yield row | _disattenuated(corrected)


def _disattenuated(agreements: Mapping[str, Agreement]) -> dict[str, float]:
    columns: dict[str, float] = {}
    for kind in KINDS:
        columns |= _columns(f"{kind}_disattenuated", agreements.get(kind, UNKNOWN))
    return columns


def _columns(name: str, agreement: Agreement) -> dict[str, float]:
    return {name: agreement.value, f"{name}_low": agreement.low, f"{name}_high": agreement.high}


def _values(rows: Floats) -> Values:
    return Values(rows[0], rows[1:])


def _apart(predicted: Floats, measured: Floats) -> tuple[Values, Values]:
    """Both sides when the documents of each leave the other as it is."""
    n_before, n_after = len(predicted) - 1, len(measured) - 1
    return (
        Values(predicted[0], np.concatenate([predicted[1:], np.tile(predicted[0], (n_after, 1))])),
        Values(measured[0], np.concatenate([np.tile(measured[0], (n_before, 1)), measured[1:]])),
    )


# ------------------------------------------------------------------------------------------------ predictions


def predict_all(side: Side, seed: int) -> Predictions:
    """Every prediction of a side's features; seed: of `random`, the null."""
    sums = _summed_predictions(side)
    n_edited = sums["n_edited"]
    summed = {name: side.averaged(values) for name, values in sums.items()}
    per_token = {name: _ratio(values, n_edited) for name, values in sums.items() if name != "n_edited"}
    random = np.random.default_rng(seed).standard_normal(len(side.features))
    scores = {"random": np.tile(random, (len(n_edited), 1))}
    if len(side.readings):
        scores |= feature_scores(side)
        attribution = side.read("sum_ag")
        summed["attribution"] = side.averaged(attribution)
        per_token["attribution"] = _ratio(attribution, side.read("n_active"))
    return Predictions(summed | scores, per_token | scores)


def _summed_predictions(side: Side) -> dict[str, Floats]:
    """Predictions that are sums over patches, and what an edit's size alone predicts."""
    patches = side.patches
    columns = [name for name in PREDICTORS if name in patches.columns and patches[name].count()]
    predictions = {name: side.sums(name) for name in (*columns, "sum_change2", "n_edited")}
    for combined, gradient in (("aligned", "first_order"), ("blended", "blended_gradient")):
        if patches[f"{combined}_scale"].count():
            rho = alignment(side.sums(f"{combined}_share"), predictions["n_edited"])
            predictions[combined] = side.sums(gradient) + rho * side.sums(f"{combined}_scale")
    return predictions


def feature_scores(side: Side) -> dict[str, Floats]:
    """Scores of features on a side's contexts, as the views efas and mutual_information have them of a whole run."""
    n, n_active = side.read("n_tokens"), side.read("n_active")
    a, a2, ag = (side.read(name) for name in ("sum_a", "sum_a2", "sum_ag"))
    efas = _score(n, a, a2, side.read("sum_g"), side.read("sum_g2"), ag)
    several = np.where(n_active >= 3, n_active, np.nan)
    active = _score(several, a, a2, side.read("active_g"), side.read("active_g2"), ag)
    scores = {"efas": efas, "abs_efas": np.abs(efas), "efas_active": active, "density": _ratio(n_active, n)}
    binned = side.with_quartiles()
    return scores | ({"mi": information_bits(binned.read("cells"))} if len(binned.readings) else {})


def _score(n: Floats, a: Floats, a2: Floats, g: Floats, g2: Floats, ag: Floats) -> Floats:
    """Pearson's correlation of a and g from their sums over n tokens; NaN where one of them does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # Stored values are float32: a spread below a millionth of their size cannot be told from none.
        variances = [
            np.where(squares / n - (x / n) ** 2 > 1e-12 * squares / n, squares / n - (x / n) ** 2, np.nan)
            for x, squares in ((a, a2), (g, g2))
        ]
        score: Floats = (ag / n - a * g / n**2) / np.sqrt(variances[0] * variances[1])
    return score


def information_bits(cells: Floats) -> Floats:
    """Mutual information in bits [...] of counts [..., 40] of a (outer) and g, corrected as in `mutual_information`."""
    joint = cells.reshape(*cells.shape[:-1], 1 + ACTIVATION_BINS, GRADIENT_BINS)
    n = cells.sum(-1)
    entropies, bins = [], []
    for counts in (joint.sum(-1), joint.sum(-2), cells):
        with np.errstate(invalid="ignore", divide="ignore"):
            p = counts / n[..., None]
            entropies.append(-np.where(p > 0, p * np.log2(p), 0).sum(-1))
        bins.append((counts > 0).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        correction = (bins[0] + bins[1] - bins[2] - 1) / (2 * n * np.log(2))
        bits: Floats = np.where(n > 0, entropies[0] + entropies[1] - entropies[2] + correction, np.nan)
    return bits


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        rate: Floats = np.where(denominator > 0, numerator / denominator, np.nan)
    return rate
