"""Contexts in, pages of documents out: each token with its energies, and the features that are active at it.

A token's features are those with the largest |a g|, and all that have a page; so a page stays small where forty are
active at every token.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from energy_lens.reports.site.pages import Context, Row, Site, answer_rows, shade
from energy_lens.sql import gradient_column
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.features import FeatureName

#: Features of a token that a page shows beside those that have a page of their own.
FEATURES_OF_TOKEN = 12

#: Contexts that are shown in all, and those of one document: the ones with the strongest examples.
MAX_CONTEXTS, MAX_CONTEXTS_OF_DOCUMENT = 2_000, 64

#: Contexts that are read at a time.
CONTEXTS_AT_A_TIME = 256


@dataclass(frozen=True)
class Shown:
    """Contexts of a document that its page shows."""

    document_id: int
    path: str
    category: str
    contexts: Sequence[Row]  #: sql/site/contexts.sql, in order
    n_contexts: int  #: stored of the document


def choose_documents(warehouse: Warehouse, examples: Mapping[int, int]) -> tuple[dict[int, Shown], int]:
    """{document: what is shown of it}, and how many documents the run has.

    examples: {context: rank}, the contexts of examples, the smallest rank first. Where the run is small every context
    is shown; else those of examples, as far as there is room.
    """
    rows = answer_rows(warehouse, "site/contexts")
    by_document: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_document[row["document_id"]].append(row)
    if len(rows) <= MAX_CONTEXTS:
        wanted = {row["context_id"] for row in rows}
    else:
        wanted = set(sorted(examples, key=lambda context: (examples[context], context))[:MAX_CONTEXTS])
    shown = {}
    for document_id, contexts in by_document.items():
        ours = [row for row in contexts if row["context_id"] in wanted]
        if len(ours) > MAX_CONTEXTS_OF_DOCUMENT:
            ours.sort(key=lambda row: (examples.get(row["context_id"], math.inf), row["context_id"]))
            ours = sorted(ours[:MAX_CONTEXTS_OF_DOCUMENT], key=lambda row: row["context_id"])
        if ours:
            shown[document_id] = Shown(document_id, ours[0]["path"], ours[0]["category"], ours, len(contexts))
    return shown, len(by_document)


def pages_of_documents(
    site: Site, warehouse: Warehouse, shown: Mapping[int, Shown], scales: Sequence[Row], examples: Collection[int]
) -> Iterator[tuple[int, Context]]:
    """(document, what its page shows), some of them read at a time.

    scales: rows of sql/reports/layer_energy.sql over all categories. examples: tokens that pages of features name.
    """
    waiting: list[Shown] = []
    documents = list(shown.values())
    for place, document in enumerate(documents):
        waiting.append(document)
        n_waiting = sum(len(one.contexts) for one in waiting)
        if n_waiting >= CONTEXTS_AT_A_TIME or place == len(documents) - 1:
            yield from _read(site, warehouse, waiting, scales, examples)
            waiting = []


def _read(
    site: Site, warehouse: Warehouse, documents: Sequence[Shown], scales: Sequence[Row], examples: Collection[int]
) -> Iterator[tuple[int, Context]]:
    contexts = {"contexts": [row["context_id"] for document in documents for row in document.contexts]}
    tokens: dict[int, list[Row]] = defaultdict(list)
    for row in answer_rows(warehouse, "site/document_tokens", **contexts):
        tokens[row["context_id"]].append(row)
    energies: dict[tuple[str, int | None], dict[int, float]] = defaultdict(dict)
    for energy, layer, token, value in warehouse.run("site/document_energies", **contexts).fetchall():
        energies[energy, layer][token] = value
    named = {"layers": [name.layer for name in site.features], "features": [name.feature for name in site.features]}
    gradient = {"gradient": gradient_column(site.energy)}
    active: dict[int, list[tuple[int, int, float, float | None]]] = defaultdict(list)
    n_active: dict[int, int] = {}
    result = warehouse.run_formatted("site/document_features", gradient, **contexts, **named, n=FEATURES_OF_TOKEN)
    for token, layer, feature, a, g, n in result.fetchall():
        active[token].append((layer, feature, a, g))
        n_active[token] = n
    for document in documents:
        yield document.document_id, page_of_document(
            site, document, tokens, [(row, energies[row["energy"], row["layer"]]) for row in scales], active, n_active,
            examples,
        )  # fmt: skip


def page_of_document(
    site: Site,
    document: Shown,
    tokens: Mapping[int, Sequence[Row]],
    energies: Sequence[tuple[Row, Mapping[int, float]]],
    active: Mapping[int, Sequence[tuple[int, int, float, float | None]]],
    n_active: Mapping[int, int],
    examples: Collection[int],
) -> Context:
    """A document's text by context, and `data`: what a script needs to show energies and features of a token.

    tokens: by context. energies: each with its scale and its values by token. active: layer, feature, a and g by token.
    """
    ids = [token["token_id"] for context in document.contexts for token in tokens[context["context_id"]]]
    first = next((one for one in energies if one[0]["energy"] == site.energy), energies[0])
    coloured, values = first

    def coloured_shade(token: int) -> int:
        value = values.get(token)
        return 0 if value is None else shade(value, coloured["q05"], coloured["q95"])

    return {
        "site": site,
        "root": "../",
        "document": document,
        "contexts": [
            (
                context,
                [(token, coloured_shade(token["token_id"])) for token in tokens[context["context_id"]]],
                context["context_index"] > (document.contexts[place - 1]["context_index"] + 1 if place else 0),
            )
            for place, context in enumerate(document.contexts)
        ],
        "examples": examples,
        "scales": [scale for scale, _ in energies],
        "coloured": energies.index(first),
        "features_of_token": FEATURES_OF_TOKEN,
        "data": {
            "scales": [[short(scale["q05"]), short(scale["q95"])] for scale, _ in energies],
            "energies": [[short(of_token.get(token)) for token in ids] for _, of_token in energies],
            "features": [
                [
                    number
                    for layer, feature, a, g in active.get(token, ())
                    for number in (layer, feature, short(a), short(g))
                ]
                for token in ids
            ],
            "active": [n_active.get(token, 0) for token in ids],
        },
    }


def short(value: float | None) -> float | None:
    """Three significant digits, so that a page of numbers stays small."""
    return None if value is None else float(f"{value:.3g}")


def labels(warehouse: Warehouse, names: Collection[tuple[int, int]]) -> dict[int, dict[int, str]]:
    """{layer: {feature: the token of its strongest activation}} of some features."""
    found: dict[int, dict[int, str]] = defaultdict(dict)
    for layer, feature, text in warehouse.run("site/labels").fetchall():
        if (layer, feature) in names:
            found[layer][feature] = text
    return found


def names_in(data: Mapping[str, Any]) -> set[FeatureName]:
    """Features that the data of a page names."""
    return {
        FeatureName(numbers[i], numbers[i + 1]) for numbers in data["features"] for i in range(0, len(numbers), 4)
    }  # fmt: skip
