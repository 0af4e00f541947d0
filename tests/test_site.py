"""The site: numbers are the warehouse's, links lead somewhere, foreign text is text, other files are left alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from energy_lens import Warehouse
from energy_lens.errors import UsageError
from energy_lens.reports import formatting
from energy_lens.reports.cards.reading import read_card
from energy_lens.reports.site import documents, plots
from energy_lens.reports.site.render import export_site
from energy_lens.tests.test_report import numbers
from energy_lens.warehouse.export_folder import MANIFEST, described

#: Elements that have no end.
VOID = {"meta", "link", "input", "img", "br", "hr"}

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(2)">',
    "</script><script src=https://example.org/x.js></script>",
    "]]>--><svg/onload=alert(3)>{{ 7 * 7 }}{% raw %}",
    "javascript:alert(4)",
    "\u202eright to left\u2066\u200f\u0000\x1b[31m",
    "שלום \u0301\u0301\u0301",
    "<b>" + "x" * 10_000,
]


class Page(HTMLParser):
    """What a page holds: elements with their attributes, tables by query, links, ids and all of its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables: list[tuple[str, list[str], list[list[str]]]] = []
        self.data: str = ""
        self.text: list[str] = []
        self._cell: list[str] | None = None
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(file.read_text(encoding="utf-8"))
        assert self._open == [], file

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append((tag, attributes))
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "formaction")]
        if tag == "table":
            self.tables.append((attributes["data-query"] or "" if "data-query" in attributes else "", [], []))
        elif tag == "tr":
            self.tables[-1][2].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][2][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "script":
            self.data += data
            return
        self.text.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def rows(self, query: str) -> list[list[str]]:
        """Rows of all tables of a query, without their headings."""
        return [row for name, _, rows in self.tables if name == query for row in rows[1:]]


def pages_in(folder: Path) -> Iterator[tuple[Path, Page]]:
    for file in sorted(folder.rglob("*.html")):
        yield file, Page(file)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def site(complete_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of the 20 features with the largest attribution, and of some that were edited; tests only read it."""
    output = tmp_path_factory.mktemp("site") / "out"
    with Warehouse(complete_warehouse) as warehouse:
        edited = warehouse.sql(
            "SELECT DISTINCT layer, feature FROM intervention_effects ORDER BY ALL LIMIT 3"
        ).fetchall()
    export_site(complete_warehouse, output, ["top:20", *(f"{layer}:{feature}" for layer, feature in edited)])
    return output


@pytest.fixture
def copied(complete_warehouse: Path, tmp_path: Path) -> Callable[..., Path]:
    """copied(statement, …): a copy of the warehouse that statements have changed."""

    def change(*statements: str, **parameters: Any) -> Path:
        db = tmp_path / "copy.duckdb"
        shutil.copy(complete_warehouse, db)
        with Warehouse(db, writable=True) as warehouse:
            for text in statements:
                warehouse.sql(text, **{name: value for name, value in parameters.items() if f"${name}" in text})
        return db

    return change


# ------------------------------------------------------------------------------------------------ links


def test_every_link_leads_somewhere_inside(site: Path) -> None:
    pages = {file.resolve(): page for file, page in pages_in(site)}
    assert len(pages) > 30
    for file, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), file
        for link in page.links:
            if link == "data:,":  # the icon that no browser is to ask for
                continue
            parts = urlsplit(link)
            assert (parts.scheme, parts.netloc, parts.query) == ("", "", ""), (file, link)
            assert not link.startswith("/")
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert target.is_file(), (file, link)
            if parts.fragment:
                assert parts.fragment in pages[target].ids, (file, link)


def test_nothing_names_the_network(site: Path) -> None:
    """Neither a page, nor the style sheet, nor a script."""
    for name, content in bytes_of(site).items():
        if name.startswith("assets/") and not name.endswith("features.js"):
            assert not re.search(rb"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp|innerHTML|eval\(", content), name


def test_features_are_strung_together(site: Path) -> None:
    """Previous and next go through all of them, by layer and number, and back."""
    names = sorted(
        (file.stem for file in (site / "feature").iterdir()), key=lambda name: tuple(map(int, name.split("-")))
    )
    for direction, order in (("next", names), ("prev", names[::-1])):
        walked = [order[0]]
        while True:
            page = Page(site / "feature" / f"{walked[-1]}.html")
            beside = {a["href"] for _, a in page.elements if a.get("rel") == direction}
            if not beside:
                break
            (link,) = beside
            walked.append((link or "").removesuffix(".html"))
        assert walked == order


# ------------------------------------------------------------------------------------------------ numbers


def assert_shows(cell: str, *values: float | None) -> None:
    """The numbers of a cell are these, rounded as they are shown."""
    shown = numbers(cell)
    if values[0] is None:
        assert not shown, cell
        return
    scale = 100 if cell.endswith("%") else 1
    for value, (number, half) in zip(values, shown, strict=True):
        assert value is not None
        # From a hundred on, three digits are significant.
        assert abs(number - scale * value) <= max(1.001 * half, 0.005 * abs(value) if abs(value) >= 100 else 0), cell


def test_a_features_page_says_what_sql_says(site: Path, complete_warehouse: Path) -> None:
    files = sorted((site / "feature").iterdir())
    with Warehouse(complete_warehouse) as warehouse:
        for file in files[::4]:
            layer, feature = map(int, file.stem.split("-"))
            page = Page(file)
            scores = warehouse.sql(
                "SELECT e.energy, e.score, e.ci_low, e.ci_high, e.cosine, e.t_specific, e.q_specific, e.z, e.q_value, "
                "e.z_null, e.z_documents, e.q_documents, e.attribution, e.attribution_low, e.attribution_high "
                "FROM efas AS e WHERE layer = $l AND feature = $f AND category = 'all' AND gradient = 'decoder' "
                "ORDER BY list_position((SELECT energies FROM current_run), energy)",
                l=layer, f=feature,
            ).fetchall()  # fmt: skip
            by_energy = page.rows("cards/scores")
            for row, cells in zip(scores, by_energy, strict=False):
                assert cells[0].startswith(row[0])
                assert_shows(cells[1], row[1])
                assert_shows(cells[2], row[2], *([] if row[2] is None else [row[3]]))
                for value, cell in zip(row[4:12], cells[3:], strict=True):
                    assert_shows(cell, value)
            for row, cells in zip(scores, by_energy[len(scores) :], strict=False):
                assert_shows(cells[1], row[12])
                assert_shows(cells[2], row[13], *([] if row[13] is None else [row[14]]))
            tokens = warehouse.sql(
                "SELECT text, n_active, n_tokens, n_active / n_tokens, mean_activation FROM feature_tokens "
                "WHERE layer = $l AND feature = $f ORDER BY place", l=layer, f=feature,
            ).fetchall()  # fmt: skip
            for (text, *values), (token, *cells) in zip(tokens, page.rows("cards/tokens"), strict=True):
                assert token == formatting.visible_token(text)
                for value, cell in zip(values, cells, strict=True):
                    if cell.endswith("%"):
                        assert abs(numbers(cell)[0][0] - 100 * value) <= 0.501
                    else:
                        assert_shows(cell, value)


def test_examples_show_activation_gradient_and_loss_of_each_token(site: Path, complete_warehouse: Path) -> None:
    file = sorted((site / "feature").iterdir())[5]
    layer, feature = map(int, file.stem.split("-"))
    page = Page(file)
    with Warehouse(complete_warehouse) as warehouse:
        card = read_card(warehouse, layer, feature)
        active = {
            token: (a, g)
            for token, a, g in warehouse.sql(
                "SELECT token_id, activation, g_nll FROM activations WHERE layer = $l AND feature = $f",
                l=layer,
                f=feature,
            ).fetchall()
        }
        losses = dict(warehouse.sql("SELECT token_id, value FROM energies WHERE energy = 'nll'").fetchall())
    texts = [attributes for tag, attributes in page.elements if tag == "p" and attributes.get("class") == "text"]
    shown = {(example.interval, example.token_id) for example in card.examples}
    assert len(texts) == len(shown)
    marks = [attributes for tag, attributes in page.elements if tag == "mark" and "data-a" in attributes]
    here = [attributes for attributes in marks if "here" in (attributes["class"] or "").split()]
    order = sorted(card.examples, key=lambda example: (example.interval > 0, -example.interval))
    for example, mark, text in zip(order, here, texts, strict=True):
        a, g = active[example.token_id]
        assert (mark["data-a"], mark["data-g"]) == (f"{a:.3g}", f"{g:.3g}")
        first = example.token_id - min(12, example.position)
        told = (text["data-loss"] or "").split(" ")
        assert told == [
            "" if losses.get(first + i) is None else f"{losses[first + i]:.3g}" for i in range(len(told))
        ]  # fmt: skip
    assert all(re.fullmatch(r"a[1-9]( g[pn][1-3])?( here)?", mark["class"] or "") for mark in marks)


def test_the_reader_has_energies_and_features_of_each_token(site: Path, complete_warehouse: Path) -> None:
    with Warehouse(complete_warehouse) as warehouse:
        contexts = warehouse.sql("SELECT document_id, list(context_id) FROM contexts GROUP BY ALL").fetchall()
        length = warehouse.sql("SELECT context_length FROM current_run").value()
        assert {f"{document}.html" for document, _ in contexts} == {file.name for file in (site / "document").iterdir()}
        document, own = contexts[0]
        tokens = warehouse.sql(
            "SELECT token_id, text FROM tokens WHERE token_id // $t IN (SELECT unnest($own)) ORDER BY token_id",
            t=length, own=own,
        ).fetchall()  # fmt: skip
        losses = dict(warehouse.sql("SELECT token_id, value FROM energies WHERE energy = 'nll'").fetchall())
        rows = warehouse.sql("SELECT token_id, layer, feature, activation, g_nll FROM activations").fetchall()
    page = Page(site / "document" / f"{document}.html")
    data = json.loads(page.data)
    assert len(tokens) == len(data["features"]) == len(data["active"])
    options = [attributes for tag, attributes in page.elements if tag == "option"]
    nll = next(i for i, attributes in enumerate(options) if "selected" in attributes)
    assert data["energies"][nll] == [documents.short(losses.get(token)) for token, _ in tokens]
    exported = {tuple(map(int, file.stem.split("-"))) for file in (site / "feature").iterdir()}
    for place, (token, _) in enumerate(tokens[:40]):
        there = {(layer, f): (a, g) for t, layer, f, a, g in rows if t == token}
        told = data["features"][place]
        names = {(told[i], told[i + 1]): (told[i + 2], told[i + 3]) for i in range(0, len(told), 4)}
        assert data["active"][place] == len(there)
        assert names == {name: tuple(documents.short(x) for x in there[name]) for name in names}
        assert set(there) & exported <= set(names)
        strongest = sorted(there, key=lambda name: -abs(there[name][0] * there[name][1]))[: documents.FEATURES_OF_TOKEN]
        assert {name for name in strongest if there[name][1]} <= set(names)
    shown = "".join(page.text)
    assert formatting.visible(tokens[3][1], 40) in shown


def test_the_list_has_a_row_for_every_page(site: Path, complete_warehouse: Path) -> None:
    page = Page(site / "features.html")
    exported = {file.stem.replace("-", ":") for file in (site / "feature").iterdir()}
    rows = page.rows("cards/listing")
    assert {row[0] for row in rows} == exported
    with Warehouse(complete_warehouse) as warehouse:
        for name, *cells in rows[:8]:
            layer, feature = map(int, name.split(":"))
            score, z, attribution = warehouse.sql(
                "SELECT score, z, attribution FROM efas WHERE layer = $l AND feature = $f AND energy = 'nll' "
                "AND gradient = 'decoder' AND category = 'all'", l=layer, f=feature,
            ).fetchone()  # fmt: skip
            for cell, value in ((cells[4], score), (cells[5], z), (cells[7], attribution)):
                assert_shows(cell, value)


def test_histograms_are_as_high_as_their_counts() -> None:
    counts = [0, 3, 1, 0, 12]
    drawn = plots.bars(-1.0, 4.0, counts)
    heights = {int(float(x) // 60): -float(h) for x, h in re.findall(r"M([\d.]+) 72v(-[\d.]+)", drawn.path)}
    assert heights == pytest.approx({1: 18, 2: 6, 4: 72})
    assert drawn.zero == pytest.approx(60)


def test_a_scatter_has_both_axes_alike_and_says_what_it_leaves_out() -> None:
    rows = [((1, i), value, value) for i, value in enumerate([-50.0, -0.2, 0.0, 0.01, 3.0, float("nan")])]
    drawn = plots.scatter(rows, 4)
    assert drawn is not None
    assert (len(drawn.points), drawn.n_left_out) == (4, 1)
    assert {point.name for point in drawn.points} == {(1, 0), (1, 1), (1, 3), (1, 4)}
    x1, y1, x2, y2 = drawn.diagonal
    for point in drawn.points:  # all of them on the diagonal
        assert (point.x - x1) / (x2 - x1) == pytest.approx((point.y - y1) / (y2 - y1))
    assert plots.scatter([], 4) is None


def test_strips_have_one_scale_that_is_alike_on_both_sides_of_0() -> None:
    drawn = plots.strips([("1", (-0.2, -0.1, 0.0, 0.05, 0.1)), ("2", (0.1, 0.2, 0.3, 0.35, 0.4)), ("3", (None,) * 5)])
    assert drawn is not None
    assert [strip.name for strip in drawn.strips] == ["1", "2"]
    (low, high), zero = drawn.ends, drawn.zero
    assert (low.value, high.value) == (-0.4, 0.4)
    assert zero - low.place == pytest.approx(high.place - zero)
    for strip in drawn.strips:
        for x, value in zip(strip.quantiles, strip.values, strict=True):
            assert (x - zero) / (high.place - zero) == pytest.approx(value / 0.4)
    assert plots.strips([("1", (None,) * 5)]) is None


# ------------------------------------------------------------------------------------------------ what cannot be told


def test_what_cannot_be_told_from_noise_is_said_so(site: Path, complete_warehouse: Path) -> None:
    with Warehouse(complete_warehouse) as warehouse:
        for file in (site / "feature").iterdir():
            layer, feature = map(int, file.stem.split("-"))
            q = warehouse.sql(
                "SELECT q_specific FROM efas WHERE layer = $l AND feature = $f AND energy = 'nll' "
                "AND gradient = 'decoder' AND category = 'all'", l=layer, f=feature,
            ).value()  # fmt: skip
            text = "".join(Page(file).text)
            verdict = next(line for line in text.splitlines() if line.startswith("nll: "))
            assert ("cannot be told from noise" in verdict) is (q is None or q >= 0.05), verdict


def test_attractors_and_interventions_are_shown(site: Path, complete_warehouse: Path) -> None:
    with Warehouse(complete_warehouse) as warehouse:
        n = warehouse.sql(
            "SELECT sum(least(n, 200)) FROM (SELECT layer, count(*) AS n FROM attractors GROUP BY ALL)"
        ).value()
        effects = warehouse.sql(
            "SELECT layer, feature, delta FROM intervention_effects WHERE direction = 0 AND category = 'all' "
            "ORDER BY intervention_id, abs(delta) DESC, feature"
        ).fetchall()
    assert len(Page(site / "attractors.html").rows("site/attractors")) == n
    page = Page(site / "interventions.html")
    for (layer, feature, delta), cells in zip(effects, page.rows("site/effects"), strict=True):
        assert cells[0] == f"{layer}:{feature}"
        assert_shows(cells[3], delta)
    assert sum(tag == "circle" for tag, _ in page.elements) == len(effects)


# ------------------------------------------------------------------------------------------------ hostile text


def test_hostile_text_is_shown_as_text(copied: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing of it becomes an element, an attribute that acts, a script or a change of direction, on any page."""
    pick = "$texts[1 + {} % len($texts)]"
    db = copied(
        f"UPDATE tokens SET text = {pick.format('token_id')} WHERE token_id % 3 = 0",
        f"UPDATE feature_logits SET text = {pick.format('place')}",
        f"UPDATE feature_tokens SET text = {pick.format('place')}",
        "UPDATE feature_activity SET top_tokens = $texts",
        f"UPDATE documents SET path = {pick.format('document_id')} || document_id, category = $texts[1]",
        f"UPDATE attractors SET label = {pick.format('attractor')}",
        "UPDATE runs SET model = $texts[2]",
        "UPDATE saes SET hook_name = $texts[1], architecture = $texts[2]",
        texts=HOSTILE,
    )
    export_site(db, tmp_path / "out", ["top:4"])
    ours = {"application/json"} | {f"{root}assets/{name}.js" for root in ("", "../") for name in ("site", "features")}
    shown = ""
    for file, page in pages_in(tmp_path / "out"):
        elements = {tag for tag, _ in page.elements}
        assert not elements & {"img", "iframe", "object", "embed", "base", "style", "b", "foreignobject", "animate"}, (
            file
        )
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")], file
            if tag == "script":
                assert attributes.get("src", attributes.get("type")) in ours
        raw = file.read_text(encoding="utf-8")
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x00-\x08\x0b-\x1f]", raw), file
        assert "x" * 200 not in raw
        shown += "".join(page.text)
    for text in HOSTILE:
        assert formatting.visible(text, 40) in shown
    script = (tmp_path / "out" / "assets" / "features.js").read_text(encoding="utf-8")
    assert "<" not in script
    assert json.loads(script.removeprefix("window.elwFeatures=").removesuffix(";\n"))["pages"]


# ------------------------------------------------------------------------------------------------ the folder


def test_the_same_warehouse_gives_the_same_bytes_and_stale_pages_go(
    site: Path, complete_warehouse: Path, tmp_path: Path
) -> None:
    """Written over a site of more pages that somebody publishes, the site is what it is in an empty folder."""
    output = tmp_path / "out"
    names = [file.stem.replace("-", ":") for file in (site / "feature").iterdir()]
    shutil.copytree(site, output)
    (output / "CNAME").write_text("who.publishes.it")
    manifest = json.loads((output / MANIFEST).read_text())
    (output / "feature" / "999-1.html").write_text("stale")
    manifest["files"].append(described(output, "feature/999-1.html"))
    (output / "index.html").write_text("older")
    (output / MANIFEST).write_text(json.dumps(manifest))
    export_site(complete_warehouse, output, names)
    found = bytes_of(output)
    assert found.pop("CNAME") == b"who.publishes.it"
    assert found == bytes_of(site)
    told = json.loads(found[MANIFEST])
    assert (told["format"], told["is_complete"]) == ("html", True)
    assert [file["path"] for file in told["files"]] == sorted(set(found) - {MANIFEST})
    assert str(complete_warehouse.parent) not in found[MANIFEST].decode()


def test_a_folder_of_somebody_elses_is_left_alone(complete_warehouse: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex', which no export wrote"):
        export_site(complete_warehouse, tmp_path)
    with pytest.raises(UsageError, match="is a file, not a folder"):
        export_site(complete_warehouse, tmp_path / "thesis.tex")
    assert bytes_of(tmp_path) == {"thesis.tex": b"years"}


# ------------------------------------------------------------------------------------------------ documents


def test_a_long_document_shows_the_contexts_of_its_strongest_examples(
    complete_warehouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Warehouse(complete_warehouse) as warehouse:
        every, n = documents.choose_documents(warehouse, {})
        assert len(every) == n
        longest = max(every.values(), key=lambda shown: len(shown.contexts))
        ids = [row["context_id"] for row in longest.contexts]
        monkeypatch.setattr(documents, "MAX_CONTEXTS_OF_DOCUMENT", 2)
        shown, _ = documents.choose_documents(warehouse, {ids[-1]: 1, ids[1]: 2})
        assert [row["context_id"] for row in shown[longest.document_id].contexts] == [ids[1], ids[-1]]
        monkeypatch.setattr(documents, "MAX_CONTEXTS", 1)
        shown, n = documents.choose_documents(warehouse, {ids[-1]: 1, ids[1]: 2})
        assert [row["context_id"] for one in shown.values() for row in one.contexts] == [ids[-1]]
        assert n == len(every)
