"""The words of --features in, features of the run's layers out: listed, top, random and matched, of a class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions.edits import LOSS
from energy_lens.errors import LARGEST_COUNT, UsageError, require, require_at_most
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.features import FeatureName

#: What features can be chosen by, strongest first: columns of sql/interventions/candidates.sql, by absolute value.
SCORES = ("attribution", "score", "z", "attribution_curvature", "mi_excess", "density")

#: What a run lacks where no feature has one of these scores; for the others it is text.
NEEDS = {"attribution_curvature": "ingest with --probes 3"}

#: Active tokens in the run that a feature must have to be chosen by rank or at random.
MIN_ACTIVE = 20

#: A random feature is one of this many that fire most nearly as often as the one it is matched to.
MATCHES = 5


@dataclass(frozen=True)
class Request:
    """--features taken apart."""

    top: int = 0
    random: int = 0
    listed: tuple[FeatureName, ...] = ()
    classes: tuple[str, ...] = ()
    general: tuple[str, ...] = ()  #: words that concern every layer, in the order of the alphabet

    @classmethod
    def parse(cls, words: Sequence[str]) -> Request:
        """Raises UsageError for a word that is none of top:N, random:N, LAYER:FEATURE, class:NAME."""
        top, random, listed, classes, general = 0, 0, [], [], []
        for word in words:
            kind, _, rest = word.partition(":")
            if kind == "class" and rest:
                classes.append(rest)
            elif rest.isdecimal() and kind in ("top", "random"):
                number = int(rest[:20])  # more digits are too many anyway, and Python reads no number of thousands
                top, random = (number, random) if kind == "top" else (top, number)
            else:
                listed.append(_listed(word))
                continue
            general.append(word)
        for kind, number in (("top", top), ("random", random)):
            require_at_most(f"--features {kind}", number, LARGEST_COUNT)
        require(
            bool(top or random or listed or classes),
            "No feature was chosen: say top:50, random:50, 15:656 or class:regex (--features).",
        )
        return cls(top, random, tuple(dict.fromkeys(listed)), tuple(classes), tuple(sorted(general)))

    def layers(self, current: CurrentRun, wanted: Sequence[int] | None) -> list[int]:
        """Layers of the run to choose features in: the wanted ones, else those of a mere list, else all.

        Raises UsageError for a layer that is not there, and for a listed feature of a layer that is not among them.
        """
        if wanted is None and self.listed and not (self.top or self.random or self.classes):
            wanted = sorted({name.layer for name in self.listed})
        layers = current.chosen(wanted, current.facts.layers, "layer")
        if outside := [name.layer for name in self.listed if name.layer not in layers]:
            current.chosen(outside[:1], layers, "layer")
        return layers

    def words_for(self, layer: int) -> list[str]:
        """Of the words that were taken apart, those that concern a layer, in an order that is theirs alone."""
        return [*self.general] + [str(name) for name in sorted(self.listed) if name.layer == layer]


def _listed(word: str) -> FeatureName:
    try:
        return FeatureName.parse(word, "--features")
    except UsageError as error:
        raise UsageError(
            f"--features does not know {word!r}: say top:50, random:50, 15:656 (layer:feature) or class:regex, "
            "separated by commas."
        ) from error


def choose(
    warehouse: Warehouse, run_id: int, layer: int, request: Request, by: str, seed: int, n_others: int = 0
) -> list[dict[str, Any]]:
    """Rows of intervention_features for a layer: feature, chosen_by, n_active, control_features, note; by feature.

    by: one of SCORES, for top:N; seed: of random features; n_others: features whose rows are each one's controls.
    Raises UsageError when the run has no scores of nll there, no feature of a class, or none with that score.
    """
    candidates = warehouse.run("interventions/candidates", layer=layer, energy=LOSS).pl()
    require(
        not candidates.is_empty(), f"Run {run_id} has no scores of nll at layer {layer}: ingest with --energies nll,…"
    )
    n_active: dict[int, int] = dict(candidates.select("feature", "n_active").iter_rows())
    usable = candidates.filter(pl.col("n_active") >= MIN_ACTIVE)
    chosen: dict[int, str] = {name.feature: "listed" for name in request.listed if name.layer == layer}
    for name in request.classes:
        of_class = warehouse.run("interventions/of_class", layer=layer, class_name=name).fetchall()
        require(bool(of_class), f"No feature of layer {layer} is of class {name}: see the view features.")
        chosen |= {feature: "class" for (feature,) in of_class if feature not in chosen}
    if request.top:
        top = _ranked(usable, layer, by)[: request.top]
        chosen |= {feature: "top" for feature in top if feature not in chosen}
    if request.random:
        generator = np.random.default_rng([seed, layer])
        chosen |= dict.fromkeys(_matched(usable, chosen, n_active, request.random, generator), "random")
    rates = dict(usable.select("feature", "n_active").iter_rows())
    never = "It never fires in this run."
    return [
        {
            "feature": feature, "chosen_by": why, "n_active": n_active.get(feature, 0),
            "control_features": _firing_as_often(rates, feature, n_active.get(feature, 0), n_others, [seed, layer]),
            "note": None if n_active.get(feature) else never,
        }
        for feature, why in sorted(chosen.items())
    ]  # fmt: skip


def _ranked(usable: pl.DataFrame, layer: int, by: str) -> list[int]:
    """Features that have a score, those of the largest absolute value first."""
    ranked = usable.drop_nulls(by).sort(pl.col(by).abs(), descending=True)
    require(
        not ranked.is_empty(),
        f"No feature of layer {layer} has a {by}: {NEEDS.get(by, 'ingest more text')}, or choose another score (--by).",
    )
    return ranked["feature"].to_list()


def _matched(
    usable: pl.DataFrame, chosen: Mapping[int, str], n_active: Mapping[int, int], n: int, generator: np.random.Generator
) -> Iterator[int]:
    """Random features that fire as often as the chosen ones, in turn; any when there are none."""
    rates = [n_active[feature] for feature in chosen if n_active.get(feature)]
    left = {f: count for f, count in usable.select("feature", "n_active").iter_rows() if f not in chosen}
    for i in range(min(n, len(left))):
        nearest = sorted(left)
        if rates:
            wanted = math.log(rates[i % len(rates)])
            nearest = sorted(left, key=lambda f: abs(math.log(left[f]) - wanted))[:MATCHES]
        feature = int(generator.choice(nearest))
        del left[feature]
        yield feature


def _firing_as_often(
    rates: Mapping[int, int], feature: int, n_active: int, n: int, seed: Sequence[int]
) -> list[int] | None:
    """n other features, drawn among those that fire most nearly as often; None when none are asked for."""
    if not n:
        return None
    wanted = math.log(max(n_active, 1))
    nearest = sorted(rates.keys() - {feature}, key=lambda f: (abs(math.log(rates[f]) - wanted), f))[: max(MATCHES, n)]
    drawn: list[int] = np.random.default_rng([*seed, feature, 1]).permutation(nearest)[:n].astype(int).tolist()
    return drawn
