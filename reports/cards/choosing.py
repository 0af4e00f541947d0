"""Words such as top:200, 20:768 or class:regex in, features of the current run out; and lists of features by rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from energy_lens.errors import UsageError, did_you_mean, nearest
from energy_lens.reports.cards.reading import check_built, check_feature, choose_energy, rows_of
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.features import FeatureName

Row = Mapping[str, Any]

#: What features are ranked by, the largest first, and how SQL says it.
RANKINGS = {
    "efas": "abs(e.score)", "z": "abs(e.z)", "attribution": "abs(e.attribution)", "mi": "m.mi_excess",
    "density": "f.density", "effect": "abs(x.effect)",
}  # fmt: skip

#: As many rows as there are.
ALL_ROWS = 1 << 60


def ranked(
    warehouse: Warehouse,
    by: str = "attribution",
    energy: str | None = None,
    layers: Sequence[int] | None = None,
    of_class: str | None = None,
    search: str | None = None,
    limit: int | None = None,
) -> list[Row]:
    """Features that fire, by rank; rows as sql/cards/listing.sql has them.

    energy: of scores; else nll, or the run's first. search: text that is part of a token which a feature fires on or
    promotes, in any case. Raises UsageError for a ranking, layer or energy that there is none of.
    """
    if by not in RANKINGS:
        raise UsageError(
            f"Features are not ranked by {by}{did_you_mean(by, RANKINGS)}: choose {', '.join(RANKINGS)} (--by)."
        )
    check_built(warehouse)
    for layer in layers or ():
        check_feature(warehouse, layer, 0)
    if of_class is not None:
        check_class(warehouse, of_class)
    wanted = {
        "energy": choose_energy(warehouse, energy), "search": search, "class": of_class,
        "layers": None if layers is None else list(layers), "n": ALL_ROWS if limit is None else limit,
    }  # fmt: skip
    return rows_of(warehouse, "cards/listing", wanted, {"order": RANKINGS[by]})


def check_class(warehouse: Warehouse, name: str) -> None:
    """Raises UsageError for a class that no feature of the current run is of."""
    known = [word for (word,) in warehouse.run("cards/class_names").fetchall()]
    if name in known:
        return
    if not known:
        raise UsageError("The current run has no feature that is assigned to a class: it is too small to test them.")
    close = nearest(name, known)
    hint = f"did you mean {close[0]}?" if close else f"they are {', '.join(known)}."
    raise UsageError(f"No feature of the current run is of class {name!r}: {hint}")


def chosen(warehouse: Warehouse, words: Sequence[str], by: str = "attribution") -> dict[int, list[int]]:
    """{layer: features} that the words name, ascending.

    words: all, top:N (of all layers together), class:NAME, LAYER:FEATURE; several are put together.
    Raises UsageError for another word, and for a choice without any feature.
    """
    found: set[FeatureName] = set()
    for word in words:
        kind, _, rest = word.partition(":")
        if word == "all":
            rows = ranked(warehouse, by)
        elif kind == "top" and rest.isdecimal():
            rows = ranked(warehouse, by, limit=int(rest[:18]))
        elif kind == "class" and rest:
            rows = ranked(warehouse, by, of_class=rest)
        elif kind.isdecimal():
            name = FeatureName.parse(word, "--features")
            check_feature(warehouse, *name)
            rows = [name._asdict()]
        else:
            raise UsageError(f"--features does not know {word!r}: say all, top:200, 20:768 or class:regex.")
        found |= {FeatureName(row["layer"], row["feature"]) for row in rows}
    if not found:
        raise UsageError("No feature was chosen: say all, top:200, 20:768 or class:regex (--features).")
    by_layer: dict[int, list[int]] = {}
    for name in sorted(found):
        by_layer.setdefault(name.layer, []).append(name.feature)
    return by_layer
