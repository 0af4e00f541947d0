"""`elw export --format html`: a warehouse in; a folder of pages that need no network and no server out.

Every number comes from a named query, of sql/cards/, sql/site/ or sql/reports/. The same warehouse, the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from energy_lens.console import bar
from energy_lens.errors import UsageError
from energy_lens.reports import tables
from energy_lens.reports.cards.choosing import chosen, ranked
from energy_lens.reports.cards.reading import Card, Window, choose_energy, read_cards
from energy_lens.reports.exports.source import read_source
from energy_lens.reports.formatting import visible_token
from energy_lens.reports.queries import ONE_THREAD, Answer, answer_all
from energy_lens.reports.site import documents, pages
from energy_lens.reports.site.environment import as_data, environment
from energy_lens.reports.site.pages import Site
from energy_lens.version import __version__
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.export_folder import Folder, export_folder
from energy_lens.warehouse.exporting import Exported
from energy_lens.warehouse.features import FeatureName

#: The style sheet and the script.
STATIC = Path(__file__).parent / "static"

#: Without --features.
DEFAULT_FEATURES = ["top:200"]

#: Cards that are read at a time.
CARDS_AT_A_TIME = 200

#: Text around an example.
WINDOW = Window(before=12, after=8, n_top=20, n_each=5)


def export_site(db: Path, output: Path, features: list[str] | None = None) -> Exported:
    """Write the current run as a site into the folder `output`.

    features: words of --features; else the 200 with the largest attribution.
    Raises UsageError for words that name none, and what `export_folder` raises; ElwError for a run without cards or
    statistics.
    """
    with Warehouse(db, config=ONE_THREAD) as warehouse:
        source = read_source(warehouse)
        with export_folder(output, "html", source.told) as folder:
            answers = answer_all(warehouse)
            by_layer = chosen(warehouse, features or DEFAULT_FEATURES)
            folder.notes += _write_site(warehouse, answers, by_layer, folder)
    return Exported([output / "index.html"], folder.notes)


# ------------------------------------------------------------------------------------------------ pages


def _write_site(
    warehouse: Warehouse, answers: dict[str, Answer], by_layer: dict[int, list[int]], folder: Folder
) -> list[str]:
    """Every page; sentences on what was left out. by_layer: the wanted features, of which some may not fire."""
    energy = choose_energy(warehouse, None)
    rows = ranked(warehouse, energy=energy)
    by_layer, silent = _firing(by_layer, rows)
    names = [FeatureName(layer, feature) for layer, found in sorted(by_layer.items()) for feature in sorted(found)]
    examples = pages.answer_rows(warehouse, "site/example_contexts", **_columns(names), n=WINDOW.n_top)
    shown, n_documents = documents.choose_documents(warehouse, {row["context_id"]: row["place"] for row in examples})
    run = answers["run"].rows[0]
    site = Site(
        run=run,
        model=tables.model_name(run["model"]),
        energy=energy,
        controls={row["energy"] for row in answers["alignment_by_layer"].rows if row["is_control"]},
        features=names,
        documents=frozenset(shown),
        version=__version__,
    )
    for file in sorted(STATIC.iterdir()):
        folder.write_text(f"assets/{file.name}", file.read_text(encoding="utf-8"))
    promoted, told = _write_features(site, warehouse, by_layer, folder)
    _write_documents(site, warehouse, shown, answers, told, folder)
    n_firing = len(rows)
    for name, context in (
        ("index", pages.page_of_overview(site, answers, n_documents, rows)),
        ("features", pages.page_of_features(site, rows, promoted, n_firing)),
        ("documents", pages.page_of_documents(site, list(shown.values()), n_documents)),
        ("classes", pages.page_of_classes(site, answers, rows)),
        ("attractors", pages.page_of_attractors(site, answers, warehouse)),
        ("interventions", pages.page_of_interventions(site, answers, warehouse)),
    ):
        _render(folder, f"{name}.html", f"{name}.html.j2", context)

    notes = [f"{name} never fires, and has no page." for name in silent[:5]]
    notes += [f"{len(silent) - 5:,} more features never fire."] if len(silent) > 5 else []
    notes += [f"{len(folder.names):,} files, {folder.n_bytes / 1e6:,.1f} MB."]
    if len(names) < n_firing:
        notes.append(f"{len(names):,} of {n_firing:,} features have a page: --features all gives one to each.")
    if len(shown) < n_documents:
        notes.append(f"{len(shown):,} of {n_documents:,} documents have a page: those of the strongest examples.")
    return notes


def _write_features(
    site: Site, warehouse: Warehouse, by_layer: dict[int, list[int]], folder: Folder
) -> tuple[dict[FeatureName, list[str]], set[int]]:
    """A page for each feature; the tokens that each promotes, and the tokens that are examples."""
    promoted: dict[FeatureName, list[str]] = {}
    told: set[int] = set()
    n = len(site.features)
    previous = dict(zip(site.features, [None, *site.features], strict=False))
    following = dict(zip(site.features, [*site.features[1:], None], strict=True))
    with bar("Features", n, "page", hidden=n < CARDS_AT_A_TIME) as progress:
        for card in _cards(warehouse, by_layer):
            name = FeatureName(card.layer, card.feature)
            context = pages.page_of_feature(site, card, previous[name], following[name])
            _render(folder, f"feature/{card.layer}-{card.feature}.html", "feature.html.j2", context)
            promoted[name] = [row["text"] for row in card.parts["logits"] if row["direction"] == "promoted"]
            told.update(example.token_id for example in card.examples)
            progress.update(1)
    return promoted, told


def _write_documents(
    site: Site,
    warehouse: Warehouse,
    shown: dict[int, documents.Shown],
    answers: dict[str, Answer],
    told: set[int],
    folder: Folder,
) -> None:
    """A page for each document, and what they share: on what features fire most, and which ones have a page."""
    scales = [row for row in answers["layer_energy"].rows if row["category"] is None]
    named: set[FeatureName] = set()
    for document_id, context in documents.pages_of_documents(site, warehouse, shown, scales, told):
        named |= documents.names_in(context["data"])
        _render(folder, f"document/{document_id}.html", "document.html.j2", context)
    found = documents.labels(warehouse, named)
    texts = {
        layer: {number: visible_token(text or "") for number, text in labels.items()} for layer, labels in found.items()
    }
    with_page: dict[int, list[int]] = {}
    for name in site.features:
        with_page.setdefault(name.layer, []).append(name.feature)
    shared = as_data({"texts": texts, "pages": with_page})
    folder.write_text("assets/features.js", f"window.elwFeatures={shared};\n")


def _firing(
    by_layer: dict[int, list[int]], rows: Sequence[pages.Row]
) -> tuple[dict[int, list[int]], list[FeatureName]]:
    """The wanted features that fire, and those that do not. Raises UsageError when there is none."""
    firing = {(row["layer"], row["feature"]) for row in rows}
    wanted = {layer: [f for f in features if (layer, f) in firing] for layer, features in by_layer.items()}
    wanted = {layer: features for layer, features in wanted.items() if features}
    silent = [
        FeatureName(layer, f) for layer, features in by_layer.items() for f in features if (layer, f) not in firing
    ]
    if not wanted:
        raise UsageError("None of the chosen features fires in the current run: elw features lists those that do.")
    return wanted, silent


def _columns(names: Sequence[FeatureName]) -> dict[str, list[int]]:
    return {"layers": [name.layer for name in names], "features": [name.feature for name in names]}


def _cards(warehouse: Warehouse, by_layer: dict[int, list[int]]) -> Iterator[Card]:
    for layer, features in sorted(by_layer.items()):
        for first in range(0, len(features), CARDS_AT_A_TIME):
            some = read_cards(warehouse, layer, features[first : first + CARDS_AT_A_TIME], window=WINDOW)
            for _, card in sorted(some.items()):
                yield card


def _render(folder: Folder, file: str, template: str, context: pages.Context) -> None:
    folder.write_text(file, environment().get_template(template).render(context))
