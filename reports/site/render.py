"""`elw export --format html`: a warehouse in; a folder of pages that need no network and no server out.

Every number comes from a named query, of sql/cards/, sql/site/ or sql/reports/. The same warehouse, the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from energy_lens.console import bar
from energy_lens.errors import UsageError
from energy_lens.reports import formatting, tables
from energy_lens.reports.cards.choosing import chosen, ranked
from energy_lens.reports.cards.reading import Card, Window, choose_energy, read_cards
from energy_lens.reports.exporting import Exported
from energy_lens.reports.queries import ONE_THREAD, Answer, gather
from energy_lens.reports.site import documents, pages
from energy_lens.reports.site.pages import Site
from energy_lens.reports.site.writing import Writer, site_in
from energy_lens.version import __version__
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.features import FeatureName
from energy_lens.warehouse.locks import claimed_folder

_HERE = Path(__file__).parent

#: Templates: the site's own, and the sentences that it shares with the report.
TEMPLATES = (_HERE / "templates", _HERE.parent / "templates")
STATIC = _HERE / "static"

#: Without --features.
DEFAULT_FEATURES = ["top:200"]

#: Cards that are read at a time.
CARDS_AT_A_TIME = 200

#: Texts of tokens that are kept as they are shown: most pages show the same ones.
TEXTS_KEPT = 1 << 16

#: Characters of a token that stands beside others, as in a list.
BRIEF = 16

#: Text around an example.
WINDOW = Window(before=12, after=8, n_top=20, n_each=5)


def export_site(db: Path, output: Path, features: list[str] | None = None) -> Exported:
    """Write the current run as a site into the folder `output`.

    features: words of --features; else the 200 with the largest attribution.
    Raises UsageError for words that name none, and for a folder that holds something else than a site of this kind or
    that another command is writing; ElwError for a run without cards or statistics, and when the folder cannot be
    written.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file, not a folder: name a folder.")
    with claimed_folder(output, "elw export"), site_in(output) as writer:
        answers = gather(db).answers
        with Warehouse(db, config=ONE_THREAD) as warehouse:
            by_layer = chosen(warehouse, features or DEFAULT_FEATURES)
            notes = _write_site(warehouse, answers, by_layer, writer)
    return Exported([output / "index.html"], notes)


@cache
def environment() -> jinja2.Environment:
    """The templates with what they call; everything of .html.j2 is escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in (
        "count", "plural", "fixed", "percent", "code", "listing", "prose_as_html", "significant", "probability",
        "interval", "visible", "visible_token",
    ):  # fmt: skip
        made.filters[name] = getattr(formatting, name)
    made.filters["cell"] = formatting.html_cell
    made.filters["short"] = _short
    made.filters["shorts"] = _shorts
    made.filters["brief"] = _brief
    made.filters["tick"] = _tick
    made.filters["distinct"] = _distinct
    made.filters["shown"] = _shown
    made.filters["shown_lines"] = _shown_lines
    made.filters["as_data"] = _as_data
    made.tests["told_from_zero"] = pages.is_told_from_zero
    made.tests["beyond_controls"] = pages.is_beyond_controls
    return made


def _short(value: float | None) -> str:
    """A number for a script to read; none is empty."""
    return "" if value is None else f"{value:.3g}"


def _shorts(values: Sequence[float | None]) -> str:
    """Numbers for a script to read, between blanks."""
    return " ".join(map(_short, values))


def _tick(value: float) -> str:
    """A power of ten, or 0, at an axis."""
    return f"{value:g}".replace("-", "−")


def _distinct(texts: Sequence[str], most: int) -> list[str]:
    """The first different ones."""
    return list(dict.fromkeys(texts))[:most]


@lru_cache(TEXTS_KEPT)
def _brief(text: str) -> Markup:
    """A token among others: blanks seen, and not many of them."""
    return escape(formatting.visible(text.replace(" ", "␣"), BRIEF))


@lru_cache(TEXTS_KEPT)
def _shown(text: str) -> Markup:
    """A token in running text, on one line."""
    return escape(formatting.visible(text, formatting.MAX_TOKEN))


def _shown_lines(text: str) -> Markup:
    """A token in running text that keeps its lines."""
    return _shown(text).replace("↵", "↵\n")


def _as_data(value: Any) -> Markup:
    """JSON that can stand in a script element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


# ------------------------------------------------------------------------------------------------ pages


def _write_site(
    warehouse: Warehouse, answers: dict[str, Answer], by_layer: dict[int, list[int]], writer: Writer
) -> list[str]:
    """Every page; sentences on what was left out. by_layer: the wanted features, of which some may not fire."""
    energy = choose_energy(warehouse, None)
    rows = ranked(warehouse, energy=energy)
    by_layer, silent = _firing(by_layer, rows)
    names = [FeatureName(layer, feature) for layer, found in sorted(by_layer.items()) for feature in sorted(found)]
    run = answers["run"].rows[0]
    examples = pages.answer_rows(warehouse, "site/example_contexts", **_columns(names), n=WINDOW.n_top)
    by_context = {row["context_id"]: row["place"] for row in reversed(examples)}
    shown, n_documents = documents.choose_documents(warehouse, by_context)
    site = Site(
        run=run,
        model=tables.model_name(run["model"]),
        energy=energy,
        controls={row["energy"] for row in answers["alignment_by_layer"].rows if row["is_control"]},
        features=names,
        documents=frozenset(shown),
        version=__version__,
    )
    promoted: dict[FeatureName, list[str]] = {}
    told: set[int] = set()

    for file in sorted(STATIC.iterdir()):
        writer.write(f"assets/{file.name}", file.read_text(encoding="utf-8"))
    with bar("Features", len(names), "page", hidden=len(names) < CARDS_AT_A_TIME) as shown_bar:
        beside = dict(zip(names, _beside(names), strict=True))
        for card in _cards(warehouse, by_layer):
            name = FeatureName(card.layer, card.feature)
            _render(writer, f"feature/{card.layer}-{card.feature}.html", "feature.html.j2",
                    pages.page_of_feature(site, card, *beside[name]))  # fmt: skip
            promoted[name] = [row["text"] for row in card.parts["logits"] if row["direction"] == "promoted"]
            told.update(example.token_id for example in card.examples)
            shown_bar.update(1)
    scales = [row for row in answers["layer_energy"].rows if row["category"] is None]
    named: set[FeatureName] = set()
    for document_id, context in documents.pages_of_documents(site, warehouse, shown, scales, told):
        named |= documents.names_in(context["data"])
        _render(writer, f"document/{document_id}.html", "document.html.j2", context)
    labels = documents.labels(warehouse, named)
    texts = {layer: {f: formatting.visible_token(t or "") for f, t in found.items()} for layer, found in labels.items()}
    pages_there = {layer: sorted(found) for layer, found in by_layer.items()}
    writer.write("assets/features.js", f"window.elwFeatures={_as_data({'texts': texts, 'pages': pages_there})};\n")

    n_firing = len(rows)
    _render(writer, "features.html", "features.html.j2", pages.page_of_features(site, rows, promoted, n_firing))
    _render(
        writer, "documents.html", "documents.html.j2", pages.page_of_documents(site, list(shown.values()), n_documents)
    )
    _render(writer, "classes.html", "classes.html.j2", pages.page_of_classes(site, answers, rows))
    _render(writer, "attractors.html", "attractors.html.j2", pages.page_of_attractors(site, answers, warehouse))
    _render(
        writer, "interventions.html", "interventions.html.j2", pages.page_of_interventions(site, answers, warehouse)
    )
    _render(writer, "index.html", "index.html.j2", pages.page_of_overview(site, answers, n_documents, rows))

    notes = [f"{FeatureName(*name)} never fires, and has no page." for name in silent[:5]]
    notes += [f"{len(silent) - 5:,} more features never fire."] if len(silent) > 5 else []
    notes += [f"{len(writer.names):,} files, {writer.n_bytes / 1e6:,.1f} MB."]
    if len(names) < n_firing:
        notes.append(f"{len(names):,} of {n_firing:,} features have a page: --features all gives one to each.")
    if len(shown) < n_documents:
        notes.append(f"{len(shown):,} of {n_documents:,} documents have a page: those of the strongest examples.")
    return notes


def _firing(
    by_layer: dict[int, list[int]], rows: Sequence[pages.Row]
) -> tuple[dict[int, list[int]], list[tuple[int, int]]]:
    """The wanted features that fire, and those that do not. Raises UsageError when there is none."""
    firing = {(row["layer"], row["feature"]) for row in rows}
    wanted = {layer: [f for f in features if (layer, f) in firing] for layer, features in by_layer.items()}
    wanted = {layer: features for layer, features in wanted.items() if features}
    silent = [(layer, f) for layer, features in by_layer.items() for f in features if (layer, f) not in firing]
    if not wanted:
        raise UsageError("None of the chosen features fires in the current run: elw features lists those that do.")
    return wanted, silent


def _columns(names: Sequence[FeatureName]) -> dict[str, list[int]]:
    return {"layers": [name.layer for name in names], "features": [name.feature for name in names]}


def _beside(names: Sequence[FeatureName]) -> list[tuple[FeatureName | None, FeatureName | None]]:
    """What comes before and behind each."""
    return [(a, c) for (a, _), (_, c) in pairwise(pairwise([None, *names, None]))] if names else []


def _cards(warehouse: Warehouse, by_layer: dict[int, list[int]]) -> Iterator[Card]:
    for layer, features in sorted(by_layer.items()):
        for first in range(0, len(features), CARDS_AT_A_TIME):
            some = read_cards(warehouse, layer, features[first : first + CARDS_AT_A_TIME], window=WINDOW)
            for _, card in sorted(some.items()):
                yield card


def _render(writer: Writer, file: str, template: str, context: pages.Context) -> None:
    writer.write(file, environment().get_template(template).render(context))
