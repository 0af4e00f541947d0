"""A warehouse and some features of a layer in, all that their cards show out.

Only data: `terminal` and pages say how it looks. Each part is the rows of a query in sql/cards/, which takes all the
features at once, so that a site of thousands of pages asks a dozen questions a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energy_lens.errors import ElwError, UsageError, did_you_mean
from energy_lens.sql import gradient_column
from energy_lens.warehouse.database import Warehouse

Row = Mapping[str, Any]

#: The migration that made the tables of cards.
CARDS_SCHEMA = 18

#: Parts of a card that are the rows of a query of that name.
PARTS = (
    "scores", "halves", "categories", "logits", "activation_histogram", "logit_histogram", "tokens", "neighbours",
    "classes", "interventions", "doses", "attractors",
)  # fmt: skip

#: Parts that warehouses of cards may lack, by the migration that made what they read.
MADE_BY = {"doses": 22}


@dataclass(frozen=True)
class Window:
    """How much of the text is read around an example, and how many examples."""

    before: int = 12  #: tokens
    after: int = 8
    n_top: int = 20
    n_each: int = 5  #: of each interval of activations


#: Whole contexts, however long they are.
WHOLE = Window(before=1 << 30, after=1 << 30)


@dataclass(frozen=True)
class Example:
    """A token at which a feature fires, with the text around it."""

    interval: int  #: 0: among the strongest; 1 to 5, by activation
    low: float  #: edges of that interval
    high: float
    n_tokens: int  #: tokens in it
    token_id: int
    context_id: int
    document_id: int
    path: str
    category: str
    position: int  #: in the context
    mark: int  #: place among the texts
    texts: Sequence[str]
    activations: Sequence[float]  #: 0 where the feature is not active
    gradients: Sequence[float | None]  #: decoder gradient of the energy, where it is
    losses: Sequence[float | None]  #: nll, nats

    @property
    def activation(self) -> float:
        return self.activations[self.mark]


@dataclass(frozen=True)
class Card:
    """All there is to see of a feature."""

    layer: int
    feature: int
    energy: str  #: whose gradients the examples show
    facts: Row  #: sql/cards/facts.sql
    parts: Mapping[str, Sequence[Row]]  #: by names in PARTS
    examples: Sequence[Example]

    @property
    def name(self) -> str:
        return f"{self.layer}:{self.feature}"

    def examples_of(self, interval: int) -> list[Example]:
        return [example for example in self.examples if example.interval == interval]

    def scores_of(self, gradient: str) -> list[Row]:
        return [row for row in self.parts["scores"] if row["gradient"] == gradient]


def read_card(
    warehouse: Warehouse, layer: int, feature: int, energy: str | None = None, window: Window = WHOLE
) -> Card:
    """The card of one feature of the current run.

    energy: whose gradients the examples show; else nll, or the run's first.
    Raises UsageError for a layer or feature that the run does not have, or one that never fires.
    """
    check_feature(warehouse, layer, feature)
    cards = read_cards(warehouse, layer, [feature], energy, window)
    if feature not in cards:
        raise UsageError(f"Feature {layer}:{feature} never fires in the current run: elw features lists those that do.")
    return cards[feature]


def read_cards(
    warehouse: Warehouse, layer: int, features: Iterable[int], energy: str | None = None, window: Window = WHOLE
) -> dict[int, Card]:
    """{feature: card} of those features of a layer of the current run that fire.

    Raises UsageError for an energy that the run does not have; ElwError for a run whose cards are not built.
    """
    wanted = {"layer": layer, "features": list(features)}
    check_built(warehouse)
    energy = choose_energy(warehouse, energy)
    there = {part for part in PARTS if warehouse.schema_number >= MADE_BY.get(part, CARDS_SCHEMA)}
    parts = {part: by_feature(rows_of(warehouse, f"cards/{part}", wanted) if part in there else ()) for part in PARTS}
    shown = {"before": window.before, "after": window.after, "n_top": window.n_top, "n_each": window.n_each}
    gradient = {"gradient": gradient_column(energy)}
    examples = by_feature(rows_of(warehouse, "cards/examples", wanted | shown, gradient))
    names = Example.__dataclass_fields__
    return {
        row["feature"]: Card(
            layer, row["feature"], energy, row,
            {part: rows[row["feature"]] for part, rows in parts.items()},
            [Example(**{name: example[name] for name in names}) for example in examples[row["feature"]]],
        )
        for row in rows_of(warehouse, "cards/facts", wanted)
    }  # fmt: skip


def choose_energy(warehouse: Warehouse, energy: str | None) -> str:
    """The energy that is meant. Raises UsageError for one that the current run does not have."""
    energies: list[str] = warehouse.sql("SELECT energies FROM current_run").value()
    if energy is None:
        return "nll" if "nll" in energies else energies[0]
    if energy not in energies:
        raise UsageError(
            f"The current run has no energy {energy}{did_you_mean(energy, energies)}; it has {', '.join(energies)}."
        )
    return energy


def check_feature(warehouse: Warehouse, layer: int, feature: int) -> None:
    """Raises UsageError unless the current run has that feature."""
    d_sae: dict[int, int] = dict(warehouse.run("cards/widths").fetchall())
    if layer not in d_sae:
        has, near = ", ".join(map(str, d_sae)), did_you_mean(layer, d_sae)
        raise UsageError(f"The current run has no SAE at layer {layer}{near}; it has layers {has}.")
    if not 0 <= feature < d_sae[layer]:
        raise UsageError(f"The SAE of layer {layer} has features 0 to {d_sae[layer] - 1}, not {feature}.")


def check_run(warehouse: Warehouse) -> None:
    """Raises ElwError when no run is current."""
    if warehouse.sql("FROM current_run").fetchone() is None:
        raise ElwError(f"{warehouse.path} holds no run: fill it with elw ingest.")


def check_built(warehouse: Warehouse) -> None:
    """Raises ElwError when the current run's cards are not there, as of a run that an older version finished."""
    check_run(warehouse)
    if warehouse.schema_number < CARDS_SCHEMA:
        raise ElwError(f"{warehouse.path} is of a version without cards: run elw features build once.")
    run_id, is_built = warehouse.run("cards/is_built").fetchall()[0]
    if not is_built:
        raise ElwError(f"The cards of run {run_id} of {warehouse.path} are not built: run elw features build once.")


def rows_of(
    warehouse: Warehouse, name: str, parameters: Mapping[str, Any], identifiers: Mapping[str, str] | None = None
) -> list[Row]:
    """The rows of a query of sql/, by column; identifiers: quoted names for its {placeholders}."""
    rows: list[Row] = [*warehouse.run_formatted(name, identifiers or {}, **parameters).dicts()]
    return rows


def by_feature(rows: Iterable[Row]) -> Mapping[int, list[Row]]:
    """Rows by what they have in the column `feature`, in their order; none for another one."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["feature"]].append(row)
    return found
