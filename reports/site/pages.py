"""What each page shows, as the context of its template: rows of the warehouse in, a dictionary out.

Nothing here knows how a page looks or where it goes: a server that renders `feature.html.j2` with `page_of_feature`
has the same page as the files have. Every page has `site`, and `root`, the way from the page to the site's first one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from energy_lens.reports import tables
from energy_lens.reports.cards.reading import Card, Example
from energy_lens.reports.cards.verdicts import of_doses
from energy_lens.reports.queries import Answer
from energy_lens.reports.site import plots
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.features import FeatureName

Row = Mapping[str, Any]
Context = dict[str, Any]

#: Steps in which activations, energies and gradients are coloured.
SHADES, LINES = 9, 3

#: Points of a scatter: as vectors more weigh a megabyte.
MAX_POINTS = 2_000

#: Attractors of a layer, features of a class and effects of an intervention that a page lists.
MAX_LISTED = 200

#: Of the scores of a layer.
QUANTILES = ("q05", "q25", "median", "q75", "q95")

#: What each measure of nearness is called.
MEASURES = {
    "decoder_cosine": ("Decoder rows", "cosine"),
    "jaccard": ("Fire together", "Jaccard"),
    "pmi": ("Fire together more often than by chance", "PMI, bits"),
}


@dataclass(frozen=True)
class Site:
    """What every page of a run knows."""

    run: Row  #: sql/reports/run.sql
    model: str
    energy: str  #: whose gradients are shown
    controls: Collection[str]  #: energies that are aligned by construction
    features: Sequence[FeatureName]  #: those that have a page, in order
    documents: Collection[int] = ()  #: those that have one
    version: str = ""
    _has_page: frozenset[tuple[int, int]] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_has_page", frozenset(self.features))

    def has_feature(self, layer: int, feature: int) -> bool:
        return (layer, feature) in self._has_page

    def has_document(self, document_id: int) -> bool:
        return document_id in self.documents


def answer_rows(warehouse: Warehouse, name: str, **parameters: Any) -> list[Row]:
    """The rows of sql/<name>.sql."""
    return [*warehouse.run(name, **parameters).dicts()]


# ------------------------------------------------------------------------------------------------ the run


def page_of_overview(site: Site, answers: Mapping[str, Answer], n_documents: int, features: Sequence[Row]) -> Context:
    """The run, and what was found in the words of the report's own queries. features: rows of the list, by rank."""
    totals = [row for row in answers["alignment_by_layer"].rows if row["layer"] is None]
    decoder = [row for row in totals if row["gradient"] == "decoder"]
    return {
        "site": site,
        "root": "",
        "facts": tables.run_facts(answers),
        "tables": tables.tables(answers),
        "signals": [row for row in decoder if not row["is_control"]],
        "controls": [row for row in decoder if row["is_control"]],
        "replication": {row["energy"]: row for row in answers["replication"].rows if row["layer"] is None},
        "negative_control": [row for row in answers["null_control"].rows if row["layer"] is None],
        "uncalibrated": [
            row for row in answers["layer_energy"].rows if row["is_uncalibrated"] and row["category"] is None
        ],
        "floors": {row["energy"]: row for row in answers["noise_floor"].rows if row["counted"] == "all"},
        "noise": [row for row in answers["noise_floor"].rows if not row["is_control"]],
        "drawn": [_strips(answers, row["energy"]) for row in decoder],
        "n_firing": len(answers["attribution_and_density"].rows),
        "n_documents": n_documents,
        "first": [row for row in features if site.has_feature(row["layer"], row["feature"])][:12],
    }


def _strips(answers: Mapping[str, Answer], energy: str) -> dict[str, Any]:
    """How scores are distributed by layer, and how many features point their own way there."""
    rows = [
        row
        for row in answers["alignment_by_layer"].rows
        if row["energy"] == energy and row["gradient"] == "decoder" and row["layer"] is not None
    ]
    drawn = plots.strips([(str(row["layer"]), [row[f"score_{q}"] for q in QUANTILES]) for row in rows])
    counts = {str(row["layer"]): (row["n_specific"], row["n_tested_specific"]) for row in rows}
    return {"energy": energy, "drawn": drawn, "counts": counts}


# ------------------------------------------------------------------------------------------------ features


def page_of_features(
    site: Site, rows: Sequence[Row], promoted: Mapping[FeatureName, Sequence[str]], n_firing: int
) -> Context:
    """The list. rows: of sql/cards/listing.sql by rank. promoted: tokens that a search finds a feature by too."""
    listed = [row for row in rows if site.has_feature(row["layer"], row["feature"])]
    return {
        "site": site,
        "root": "",
        "rows": listed,
        "promoted": promoted,
        "layers": sorted({row["layer"] for row in listed}),
        "classes": sorted({row["class"] for row in listed if row["class"]}),
        "n_firing": n_firing,
    }


@dataclass(frozen=True)
class Token:
    """A token of an example."""

    text: str
    activation: float
    gradient: float | None
    loss: float | None
    shade: int  #: 0 where the feature is not active, else 1 to SHADES
    line: int  #: −LINES to LINES, by the gradient
    is_marked: bool


def page_of_feature(site: Site, card: Card, previous: FeatureName | None, following: FeatureName | None) -> Context:
    """Every panel of a card. previous, following: the pages beside it."""
    steepest = max(
        (abs(g) for example in card.examples for g in example.gradients if g is not None), default=0.0
    )  # fmt: skip
    intervals: dict[int, list[tuple[Example, list[Token]]]] = defaultdict(list)
    for example in card.examples:
        intervals[example.interval].append((example, _tokens(example, card.facts["max_activation"], steepest)))
    neighbours: dict[str, list[Row]] = defaultdict(list)
    for row in card.parts["neighbours"]:
        neighbours[row["measure"]].append(row)
    decoder = card.scores_of("decoder")
    return {
        "site": site,
        "root": "../",
        "card": card,
        "previous": previous,
        "following": following,
        "scores": decoder,
        "discrete": card.scores_of("discrete"),
        "main": next((row for row in decoder if row["energy"] == card.energy), None),
        "activations": _bars(card.parts["activation_histogram"]),
        "logits": _bars(card.parts["logit_histogram"]),
        "promoted": [row for row in card.parts["logits"] if row["direction"] == "promoted"],
        "suppressed": [row for row in card.parts["logits"] if row["direction"] == "suppressed"],
        "top": intervals.pop(0, []),
        "intervals": sorted(intervals.items(), reverse=True),
        "neighbours": [(*words, neighbours[measure]) for measure, words in MEASURES.items() if neighbours[measure]],
        "interventions": _interventions(card.parts["interventions"], card.parts["doses"]),
    }


def _tokens(example: Example, largest: float, steepest: float) -> list[Token]:
    columns = zip(example.texts, example.activations, example.gradients, example.losses, strict=True)
    return [
        Token(text, a, g, loss, shade(a, 0, largest) if a else 0, _line(g, steepest), place == example.mark)
        for place, (text, a, g, loss) in enumerate(columns)
    ]


def shade(value: float, low: float, high: float) -> int:
    """1 to SHADES, by where a value is between two others; what is beyond them is as far as they are."""
    if high <= low:
        return SHADES
    return 1 + min(SHADES - 1, max(0, int((value - low) / (high - low) * SHADES)))


def _line(gradient: float | None, steepest: float) -> int:
    if not gradient or not steepest:
        return 0
    size = 1 + min(LINES - 1, int(abs(gradient) / steepest * LINES))
    return size if gradient > 0 else -size


def _bars(rows: Sequence[Row]) -> plots.Bars | None:
    return plots.bars(rows[0]["low"], rows[0]["high"], rows[0]["counts"]) if rows else None


def _interventions(rows: Iterable[Row], doses: Sequence[Row]) -> list[Row]:
    """Each edit of the feature with the control directions beside it, and a line on its doses if they were measured."""
    edits: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        edits[row["intervention_id"]].append(row)
    found: list[Row] = []
    for beside in edits.values():
        own = next((row for row in beside if row["direction"] == 0), None)
        controls = [row for row in beside if row["direction"] > 0]
        if own is not None:
            largest = max((abs(row["delta_per_token"]) for row in controls), default=None)
            told = of_doses(row for row in doses if row["intervention_id"] == own["intervention_id"])
            found.append({**own, "controls": controls, "largest_control": largest, "doses": told})
    return found


def page_of_documents(site: Site, shown: Sequence[Any], n_documents: int) -> Context:
    """The list of documents that have a page. shown: as documents.Shown."""
    return {"site": site, "root": "", "shown": shown, "n_documents": n_documents}


# ------------------------------------------------------------------------------------------------ classes, attractors


def page_of_classes(site: Site, answers: Mapping[str, Answer], features: Sequence[Row]) -> Context:
    """Classes of tokens with their control, and the features of each. features: rows of the list, by rank."""
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in features:
        if row["class"] and site.has_feature(row["layer"], row["feature"]):
            by_class[row["class"]].append(row)
    rows = answers["concept_classes"].rows
    return {
        "site": site,
        "root": "",
        "table": tables.tables(answers)["concept_classes"],
        "classes": [(row, by_class[row["class"]][:MAX_LISTED], len(by_class[row["class"]])) for row in rows],
    }


def page_of_attractors(site: Site, answers: Mapping[str, Answer], warehouse: Warehouse) -> Context:
    """Attractors and basins by layer; empty where none were looked for."""
    layers: dict[int, list[Row]] = defaultdict(list)
    for row in answer_rows(warehouse, "site/attractors", n=MAX_LISTED):
        layers[row["layer"]].append(row)
    falling: dict[tuple[int, int], list[str]] = defaultdict(list)
    for row in answer_rows(warehouse, "site/basin_tokens", n=6):
        falling[row["layer"], row["attractor"]].append(row["text"])
    every = tables.tables(answers)
    return {
        "site": site,
        "root": "",
        "settings": every["attractor_settings"],
        "shifts": every["attractor_shifts"],
        "layers": sorted(layers.items()),
        "falling": falling,
        "largest": MAX_LISTED,
    }


# ------------------------------------------------------------------------------------------------ interventions


def page_of_interventions(site: Site, answers: Mapping[str, Answer], warehouse: Warehouse) -> Context:
    """Measured effects beside controls and predictions; empty where nothing was edited."""
    edits: dict[int, list[Row]] = defaultdict(list)
    for row in answer_rows(warehouse, "site/effects"):
        edits[row["intervention_id"]].append(row)
    every = tables.tables(answers)
    return {
        "site": site,
        "root": "",
        "edits": [
            {
                "rows": rows[:MAX_LISTED],
                "n": len(rows),
                "first": rows[0],
                "scatter": plots.scatter(_points(rows), MAX_POINTS),
                "n_beyond": sum(is_beyond_controls(row) for row in rows),
                "n_compared": sum(row["largest_control"] is not None for row in rows),
                "n_intervals": sum(row["delta_low"] is not None for row in rows),
                "n_told": sum(is_told_from_zero(row) for row in rows),
            }
            for rows in edits.values()
        ],
        "validation": every["predictor_validation"],
        "roles": every["confirmed_roles"],
    }


def is_told_from_zero(row: Row) -> bool:
    """Whether the 95 % interval of a measured effect lies on one side of 0."""
    return row["delta_low"] is not None and (row["delta_low"] > 0 or row["delta_high"] < 0)


def is_beyond_controls(row: Row) -> bool:
    """Whether a feature's own direction did more than any control direction of the same norm."""
    largest = row["largest_control"]
    return largest is not None and abs(row["delta_per_token"]) > largest


def _points(rows: Iterable[Row]) -> list[tuple[tuple[int, int], float, float]]:
    return [
        ((row["layer"], row["feature"]), row["predicted"], row["delta"])
        for row in rows
        if row["predicted"] is not None and row["delta"] is not None
    ]
