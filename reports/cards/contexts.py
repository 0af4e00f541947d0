"""A warehouse and a context, a place in it or a token's text in; the text with its energies and features out.

Only data, as in `reading`: a terminal and pages say how it looks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energy_lens.errors import UsageError
from energy_lens.reports.cards.reading import check_run, choose_energy, rows_of
from energy_lens.sql import gradient_column
from energy_lens.warehouse.database import Warehouse

Row = Mapping[str, Any]

#: Occurrences of a token that are shown with their text, and features of each layer that fire on it.
N_EXAMPLES, N_FIRING = 5, 5

#: Characters of a token's text that a message repeats.
LONGEST = 40

#: How text is written that a terminal or a page cannot show as it is, by what it stands for.
_SIGNS = {"↵": "\n", "␍": "\r", "⇥": "\t", "␣": " "}
_SPELLED = _SIGNS | {"\\n": "\n", "\\r": "\r", "\\t": "\t"}
_SPELLING = re.compile(r"[↵␍⇥␣]|\\[nrt]|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")


@dataclass(frozen=True)
class Energy:
    """An energy as it is read: at one layer, or at the model's output; and how it is distributed over the run."""

    name: str
    layer: int | None  #: None: at the model's output
    units: str
    is_loss: bool  #: minus the log probability of the next token
    low: float | None  #: its 5 % quantile over the run's tokens
    high: float | None  #: its 95 % quantile
    mean: float | None

    @property
    def place(self) -> str:
        """The energy with its layer, as hopfield at layer 20."""
        return self.name if self.layer is None else f"{self.name} at layer {self.layer}"


@dataclass(frozen=True)
class Stretch:
    """Text around a token, with one energy of each token."""

    token_id: int
    context_id: int
    document_id: int
    path: str
    category: str
    position: int  #: of the token in its context
    mark: int  #: its place among the texts
    texts: Sequence[str]
    values: Sequence[float | None]  #: the energy, where there is one


@dataclass(frozen=True)
class TokenRead:
    """One token of a context: its energies, and the features that are active there."""

    token: Row  #: sql/cards/token.sql
    energy: str  #: whose gradient g is
    values: Sequence[Row]  #: sql/cards/token_values.sql
    layers: Sequence[Row]  #: sql/cards/token_layers.sql
    features: Sequence[Row]  #: sql/cards/token_features.sql


@dataclass(frozen=True)
class ContextRead:
    """A context with an energy of its tokens."""

    facts: Row  #: sql/cards/context.sql
    energy: Energy
    text: Stretch
    token: TokenRead | None  #: the one that was asked for


@dataclass(frozen=True)
class TokenFacts:
    """A token of the vocabulary wherever it occurs."""

    spellings: Sequence[Row]  #: its entries of the vocabulary: sql/cards/spellings.sql
    places: Row  #: sql/cards/token_places.sql
    energy: Energy  #: of the examples
    energies: Sequence[Row]  #: sql/cards/token_energies.sql
    firing: Sequence[Row]  #: sql/cards/token_firing.sql
    examples: Sequence[Stretch]  #: from the most of the energy to the least


def read_context(
    warehouse: Warehouse, context_id: int, energy: str | None = None, layer: int | None = None,
    position: int | None = None,
) -> ContextRead:  # fmt: skip
    """A context of the current run.

    energy, layer: what is read of each token; else nll, or the run's first, and the run's last layer.
    position: of a token in the context whose features are read too.
    Raises UsageError for a context, position, energy or layer that there is none of.
    """
    chosen = choose_reading(warehouse, energy, layer)
    facts = next(iter(rows_of(warehouse, "cards/context", {"context": context_id})), None)
    if facts is None:
        n = int(warehouse.run("cards/n_contexts").value() or 0)
        has = f"it has 0 to {n - 1}" if n else "it has none yet; elw ingest reads some"
        raise UsageError(f"There is no context {context_id} in the current run: {has}.")
    whole = stretches(warehouse, [facts["first_id"]], chosen, before=0, after=facts["n_tokens"])
    if not whole:
        raise UsageError(f"Context {context_id} is planned and not read yet: the same elw ingest goes on with it.")
    if position is None:
        return ContextRead(facts, chosen, whole[0], None)
    if not 0 <= position < facts["n_tokens"]:
        raise UsageError(f"Context {context_id} has tokens 0 to {facts['n_tokens'] - 1}, not {position} (--token).")
    return ContextRead(facts, chosen, whole[0], read_token(warehouse, facts["first_id"] + position, chosen.name, layer))


def read_token(warehouse: Warehouse, token_id: int, energy: str, layer: int | None = None) -> TokenRead:
    """A token of the current run with its features; of one layer, if one is named."""
    wanted = {"token": token_id}
    (token,) = rows_of(warehouse, "cards/token", wanted)
    features = rows_of(
        warehouse, "cards/token_features", wanted | {"layers": None if layer is None else [layer]},
        {"gradient": gradient_column(energy)},
    )  # fmt: skip
    values, layers = (rows_of(warehouse, f"cards/{part}", wanted) for part in ("token_values", "token_layers"))
    return TokenRead(token, energy, values, layers, features)


def find_token(
    warehouse: Warehouse, text: str | None = None, vocabulary_id: int | None = None, energy: str | None = None,
    layer: int | None = None, before: int = 12, after: int = 8,
) -> TokenFacts:  # fmt: skip
    """Where a token of the vocabulary occurs in the current run.

    text: exactly, its space included; ↵ and ␣, \\n and the like may stand for what a terminal does not show.
    before, after: tokens around an occurrence that are read.
    Raises UsageError for a token that does not occur, with the texts that come close.
    """
    chosen = choose_reading(warehouse, energy, layer)
    spellings: Sequence[Row] = ()
    for spelled in (text,) if text is None else dict.fromkeys((text, _unspelled(text))):
        spellings = spellings or rows_of(warehouse, "cards/spellings", {"text": spelled, "id": vocabulary_id})
    if not spellings:
        raise UsageError(_not_found(warehouse, text, vocabulary_id))
    ids = {"ids": [row["vocabulary_id"] for row in spellings]}
    (places,) = rows_of(warehouse, "cards/token_places", ids)
    gradient = {"gradient": gradient_column(chosen.name)}
    which = {"energy": chosen.name, "layer": chosen.layer, "n": N_EXAMPLES}
    examples = [row["token_id"] for row in rows_of(warehouse, "cards/token_examples", ids | which)]
    return TokenFacts(
        spellings, places, chosen,
        rows_of(warehouse, "cards/token_energies", ids),
        rows_of(warehouse, "cards/token_firing", ids | {"n": N_FIRING}, gradient),
        stretches(warehouse, examples, chosen, before, after),
    )  # fmt: skip


def stretches(warehouse: Warehouse, token_ids: Sequence[int], energy: Energy, before: int, after: int) -> list[Stretch]:
    """The text around each of these tokens, in their order."""
    wanted = {"tokens": list(token_ids), "before": before, "after": after}
    which = {"energy": energy.name, "layer": energy.layer}
    return [Stretch(**row) for row in rows_of(warehouse, "cards/stretches", wanted | which)]


def choose_reading(warehouse: Warehouse, energy: str | None, layer: int | None) -> Energy:
    """The energy that is meant, and the layer it is read at.

    Raises UsageError for an energy or layer that the current run does not have.
    """
    check_run(warehouse)
    name = choose_energy(warehouse, energy)
    layers: list[int]
    at_layers: bool
    layers, at_layers = warehouse.run("cards/energy_layers", energy=name).fetchall()[0]
    if layer is not None and layer not in layers:
        raise UsageError(f"The current run has no layer {layer}; it has {', '.join(map(str, layers))}.")
    read_at = (layers[-1] if layer is None else layer) if at_layers else None
    (row,) = rows_of(warehouse, "cards/energy_range", {"energy": name, "layer": read_at})
    return Energy(name, read_at, row["units"], row["is_loss"], row["q05"], row["q95"], row["mean"])


def _unspelled(text: str) -> str:
    """Text as it was before a terminal or a page spelled what it cannot show."""

    def original(match: re.Match[str]) -> str:
        code = match[1] or match[2]
        return _SPELLED.get(match[0]) or (chr(int(code, 16)) if int(code, 16) < 0x110000 else match[0])

    return _SPELLING.sub(original, text)


def _not_found(warehouse: Warehouse, text: str | None, vocabulary_id: int | None) -> str:
    if text is None:
        return f"Token {vocabulary_id} of the vocabulary does not occur in the current run."
    known: dict[str, list[str]] = {}  # but for spaces and case
    for row in rows_of(warehouse, "cards/token_texts", {}):
        known.setdefault(row["text"].strip().lower(), []).append(row["text"])
    meant = text[:LONGEST].strip().lower()
    close = difflib.get_close_matches(meant, known, n=3, cutoff=0.5) if meant else []
    suggested = [other for word in close for other in known[word]][:3]
    hint = f": did you mean {' or '.join(map(_spelled, suggested))}?" if suggested else "."
    return f"No token of the current run is {_spelled(text)}, its spaces counted{hint}"


def _spelled(text: str) -> str:
    """A token's text as it may be typed, its blanks seen."""
    cut = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return f"“{cut.translate({ord(character): sign for sign, character in _SIGNS.items()})}”"
