"""Features that align most in, a few tokens at which each fires out, with the text around them.

They come from the cards of the run (`reports/cards/reading.py`); a run whose cards are not built has none, and the
report says how to get them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energy_lens.errors import ElwError
from energy_lens.reports.cards.reading import Example, Window, check_built, read_cards
from energy_lens.reports.formatting import TextPiece
from energy_lens.warehouse.database import Warehouse

Row = Mapping[str, Any]

#: Features whose examples are shown.
MOST_FEATURES = 10

#: A line or two of text for each of three examples.
WINDOW = Window(before=14, after=8, n_top=3, n_each=0)


@dataclass(frozen=True)
class Place:
    """A token at which a feature fires, and the text around it."""

    path: str  #: of the document
    category: str
    position: int  #: in its context, from 0
    context_id: int
    activation: float
    gradient: float | None  #: decoder gradient of the energy
    pieces: Sequence[TextPiece]  #: the text, token by token
    is_cut_before: bool  #: whether the context holds more text before
    is_cut_after: bool


@dataclass(frozen=True)
class Illustrated:
    """A feature of the list of top features, with places."""

    energy: str
    layer: int
    feature: int
    row: Row  #: of sql/reports/top_features.sql
    places: Sequence[Place]

    @property
    def name(self) -> str:
        return f"{self.layer}:{self.feature}"


def read_examples(warehouse: Warehouse, top: Sequence[Row]) -> list[Illustrated] | None:
    """Examples of the first features of one energy; None for a run whose cards are not built.

    top: rows of sql/reports/top_features.sql, of all energies: those of nll are chosen, else of the first energy.
    """
    try:
        check_built(warehouse)
    except ElwError:
        return None
    rows = leading(top)[:MOST_FEATURES]
    by_layer: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        by_layer[row["layer"]].append(row["feature"])
    cards = {
        (layer, feature): card
        for layer, features in sorted(by_layer.items())
        for feature, card in read_cards(warehouse, layer, features, rows[0]["energy"], WINDOW).items()
    }
    return [
        Illustrated(
            row["energy"], row["layer"], row["feature"], row,
            [_place(example) for example in cards[row["layer"], row["feature"]].examples_of(0)],
        )
        for row in rows
        if (row["layer"], row["feature"]) in cards
    ]  # fmt: skip


def leading(rows: Sequence[Row]) -> list[Row]:
    """Those of the energy that a reader looks at first: nll, else the first that is no control, else the first."""
    energies = [row["energy"] for row in sorted(rows, key=lambda row: (row["energy"] != "nll", row["is_control"]))]
    return [row for row in rows if row["energy"] == energies[0]] if rows else []


def _place(example: Example) -> Place:
    gradient = example.gradients[example.mark]
    return Place(
        path=example.path,
        category=example.category,
        position=example.position,
        context_id=example.context_id,
        activation=example.activation,
        gradient=gradient,
        pieces=[
            TextPiece(text, place == example.mark, activation > 0)
            for place, (text, activation) in enumerate(zip(example.texts, example.activations, strict=True))
        ],
        is_cut_before=example.position > example.mark,
        is_cut_after=len(example.texts) - 1 - example.mark == WINDOW.after,
    )
