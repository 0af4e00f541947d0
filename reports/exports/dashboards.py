"""Features of a layer in, what dashboards of other tools show of each out: logits, histograms, and whole contexts.

SAEDashboard and Neuronpedia show the same under other names, so both are written from this. Contexts are read once for
all the features that have examples in them, and only the places at which a feature is active are read with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from energy_lens.console import say
from energy_lens.reports.cards.choosing import chosen
from energy_lens.reports.cards.reading import by_feature
from energy_lens.reports.exports.source import Sae, Source, read_source
from energy_lens.reports.queries import ONE_THREAD
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.export_folder import Folder, export_folder
from energy_lens.warehouse.exporting import Exported

#: Features that are read at once: 1,024 dashboards of whole contexts are some 50 MB.
FEATURES_AT_ONCE = 1024

#: Contexts that are kept for the next features: of 128 tokens each some 60 MB.
CONTEXTS_KEPT = 4096

#: Groups of examples: the strongest, and intervals of equal width from the highest down.
STRONGEST = 0

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Text:
    """A whole context."""

    path: str  #: of its document
    tokens: list[str]
    losses: list[float]  #: nll of each token that has a next one, nats; empty in a run without that energy


@dataclass(frozen=True)
class Shown:
    """An example of a feature: a context, with the token that it is an example of."""

    interval: int  #: STRONGEST, or 1 to 5 by activation
    low: float
    high: float
    share: float  #: of the included tokens whose activation lies between low and high, 0 among them in the lowest
    context_id: int
    position: int  #: of the token, in the context
    text: Text
    values: list[float]  #: activations; 0 where the feature is not active


@dataclass(frozen=True)
class Bars:
    """A histogram of bins of equal width."""

    heights: list[int]
    centres: list[float]

    @classmethod
    def of(cls, low: float, high: float, counts: Sequence[int]) -> Bars:
        width = (high - low) / len(counts)
        return cls(list(counts), shortest(low + (place + 0.5) * width for place in range(len(counts))))


@dataclass(frozen=True)
class Dashboard:
    """What is shown of a feature."""

    feature: int
    density: float  #: share of included tokens at which it is active
    max_activation: float
    promoted: list[tuple[str, float]]  #: tokens and logits, the strongest first; empty where there are none
    suppressed: list[tuple[str, float]]
    activation_bars: Bars  #: of activations that are not 0
    logit_bars: Bars  #: over the vocabulary
    neighbours: list[int]  #: by cosine of the decoder rows
    cosines: list[float]
    tokens: list[tuple[str, float]]  #: that it fires on most often, with their share of its active tokens
    concept_class: str | None
    examples: list[Shown]


#: Writes an SAE's dashboards of these features into the folder; returns its place there.
WriteSae = Callable[[Folder, Source, Sae, Sequence[int], Iterator[Dashboard]], str]


def export_dashboards(
    db: Path, output: Path, form: str, features: Sequence[str] | None, notes: Sequence[str], write: WriteSae
) -> Exported:
    """Write features of the current run into the folder `output`, SAE by SAE.

    features: words as `chosen` takes them; None for all that fire. notes: what is left out of that form.
    Raises UsageError for a word or folder that will not do, ElwError for a run whose cards are not built.
    """
    with Warehouse(db, config=ONE_THREAD) as warehouse:
        by_layer = chosen(warehouse, features or ["all"])
        source = read_source(warehouse)
        with export_folder(output, form, source.told) as folder:
            contexts = Contexts(warehouse)
            places = [
                write(folder, source, source.sae(layer), some, read_dashboards(warehouse, layer, some, contexts))
                for layer, some in by_layer.items()
            ]
            folder.notes += notes
    return Exported([output / place for place in places], folder.notes)


def shortest(values: Iterable[float]) -> list[float]:
    """FLOATs in the fewest digits that say which: 0.1, not 0.10000000149011612."""
    return [float(str(value)) for value in np.fromiter(values, np.float32)]


def read_dashboards(
    warehouse: Warehouse, layer: int, features: Sequence[int], contexts: Contexts
) -> Iterator[Dashboard]:
    """Dashboards of those features of a layer of the current run that fire, in the order of their numbers."""
    say(f"Layer {layer}: {len(features):,} features…")
    remaining = iter(sorted(features))
    while some := list(islice(remaining, FEATURES_AT_ONCE)):
        yield from _read(warehouse, layer, some, contexts)


def _read(warehouse: Warehouse, layer: int, features: list[int], contexts: Contexts) -> Iterator[Dashboard]:
    def rows(name: str) -> Mapping[int, list[Row]]:
        return by_feature(warehouse.run(name, layer=layer, features=features).dicts())

    facts, logits, tokens, cosines = map(rows, ("cards/facts", "cards/logits", "cards/tokens", "exports/cosines"))
    of_activations, of_logits = rows("cards/activation_histogram"), rows("cards/logit_histogram")
    examples, active = rows("exports/examples"), rows("exports/activations_of_examples")
    nothing = Bars([], [])
    for feature in features:
        for fact in facts.get(feature, []):  # one, or none if it never fires
            near = cosines[feature][0] if cosines[feature] else {"neighbours": [], "cosines": []}
            yield Dashboard(
                feature, fact["density"], shortest([fact["max_activation"]])[0],
                _moved(logits[feature], "promoted"), _moved(logits[feature], "suppressed"),
                next(map(_bars, of_activations[feature]), nothing), next(map(_bars, of_logits[feature]), nothing),
                near["neighbours"], near["cosines"],
                [(row["text"], row["n_active"] / fact["n_active"]) for row in tokens[feature]], fact["class"],
                _shown(fact, examples[feature], active[feature], contexts),
            )  # fmt: skip


def _moved(rows: Sequence[Row], direction: str) -> list[tuple[str, float]]:
    rows = [row for row in rows if row["direction"] == direction]
    return list(zip([row["text"] for row in rows], shortest(row["logit"] for row in rows), strict=True))


def _bars(row: Row) -> Bars:
    return Bars.of(row["low"], row["high"], row["counts"])


def _shown(fact: Row, examples: Sequence[Row], active: Sequence[Row], contexts: Contexts) -> list[Shown]:
    texts = contexts.read([row["context_id"] for row in examples])
    values = {}
    for row in active:
        values[row["context_id"]] = of_context = [0.0] * len(texts[row["context_id"]].tokens)
        for position, activation in zip(row["positions"], row["activations"], strict=True):
            of_context[position] = activation
    n_inactive = fact["n_tokens"] - fact["n_active"]
    edges = iter(shortest(row[edge] for row in examples for edge in ("low", "high")))
    return [
        Shown(
            row["interval"], next(edges), next(edges),
            (row["n_tokens"] + (n_inactive if row["interval"] == 1 else 0)) / fact["n_tokens"],
            row["context_id"], row["position"], texts[row["context_id"]], values[row["context_id"]],
        )
        for row in examples
    ]  # fmt: skip


class Contexts:
    """Whole contexts of the current run, kept for the features that come next."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._kept: OrderedDict[int, Text] = OrderedDict()

    def read(self, context_ids: Iterable[int]) -> Mapping[int, Text]:
        """{context: its text}, of at least those that are asked for."""
        wanted = set(context_ids)
        missing = sorted(wanted - self._kept.keys())
        for context_id in wanted & self._kept.keys():
            self._kept.move_to_end(context_id)
        if missing:
            rows = self._warehouse.run("exports/contexts", contexts=missing).fetchall()
            self._kept.update({context_id: Text(path, texts, losses) for context_id, path, texts, losses in rows})
        while len(self._kept) > max(CONTEXTS_KEPT, len(wanted)):
            self._kept.popitem(last=False)
        return self._kept
