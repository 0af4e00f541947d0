"""The report: every number is a query's, foreign text is shown and never obeyed, and a file appears whole or not."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from energy_lens import Warehouse
from energy_lens.errors import ElwError, UsageError
from energy_lens.reports import formatting, queries
from energy_lens.reports.bitmaps import with_small_bitmaps
from energy_lens.reports.render import render
from energy_lens.sql import statement

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = (
    "efas_by_layer", "attribution_and_density", "energy_by_layer_and_category", "direction_control", "negative_control",
    "dose_response",
)  # fmt: skip

#: Columns of a query that each heading of a table shows.
SHOWN = {
    "Layer": ("layer",), "Features": ("d_sae", "n_features"), "k": ("k",),
    "FVU": ("fvu",),
    "FVU, macro": ("fvu_macro",), "CE recovered": ("ce_recovered_mean",),
    "L0": ("l0",), "Dead": ("dead_share",), "Firing here": ("n_firing",), "Documents": ("n_documents",),
    "Read": ("n_documents_read",), "Tokens planned": ("planned_tokens",), "Tokens ingested": ("ingested_tokens",),
    "Dropped tails": ("dropped_tokens",), "Tokens": ("n_tokens",), "Included": ("n_included",),
    "Share": ("share_included", "share_of_features"),
    "First token": ("n_first_token",), "BOS": ("n_bos",), "Massive norm": ("n_massive_norm",),
    "Special token": ("n_special_token",), "No next token": ("n_no_next_token",), "Counted by the test": ("n_counted",),
    "Tested": ("n_tested",), "q_specific < 0.05": ("n_specific", "n_significant"),
    "All layers at once": ("n_specific_at_once",), "Their |score|, median": ("median_specific",),
    "Their |cosine|, median": ("cosine_specific",), "q_value < 0.05": ("n_significant",),
    "q_documents < 0.05": ("n_significant_documents",), "Score, 5 % to 95 %": ("score_q05", "score_q95"),
    "Supports": ("n_supports",), "Opposes": ("n_opposes",), "Attractors": ("n_attractors",),
    "Feature": ("layer", "feature"), "Active tokens": ("n_active",), "Score": ("score",),
    "Cosine": ("cosine",),
    "t_specific": ("t_specific",), "q_specific": ("q_specific",), "q_value": ("q_value",),
    "q_documents": ("q_documents",), "Attribution": ("attribution",), "with curvature": ("attribution_curvature",),
    "per active token": ("attribution_per_token",), "of the loss": ("attribution_share",),
    "score_active": ("score_active",), "Spearman": ("spearman",), "q_specific < 0.05 in A": ("n_found",),
    "Selected size": ("selected_size",), "Replicated size": ("replicated_size",), "Ratio": ("replicated_share",),
    "Var(z_A − z_B)/2": ("z_variance",), "of z_null": ("z_null_variance",),
    "tested in B": ("n_retested",), "same sign in B": ("n_same_sign",),
    "and p_specific < 0.05 in B": ("n_confirmed",), "Mean": ("mean",), "SD": ("sd",), "5 %": ("q05",),
    "Median": ("median",),
    "95 %": ("q95",), "Uniform guess": ("uniform_guess",), "KL to output": ("kl_to_output",),
    "Bits, mean": ("mean",), "of the mates": ("mates_mean",), "Excess, mean": ("excess_mean",),
    "Excess, 95 %": ("excess_q95",), "Largest excess": ("excess_largest",), "Spearman with |score|": ("spearman",),
    "|z_null| > 1.96": ("share_rejected",),
    "|z| > 1.96, true pairing": ("share_rejected_true_pairing",),
    "p < 0.05, reference row": ("share_reference_rejected",), "p_specific < 0.05, own row": ("share_specific",),
    "|score|, median": ("median_score",), "|cosine|, median": ("median_cosine",),
    "RMS of r": ("root_mean_square",), "of noise": ("noise_root_mean_square",), "Largest |r|": ("largest",),
    "noise reaches": ("noise_largest",), "|r| > 0.7": ("n_above",), "noise gives": ("noise_above",),
    "and q_specific < 0.05": ("n_above_specific",), "by chance, below": ("spearman_noise",),
    "By other labels": ("n_by_other_labels",), "Mean EFAS": ("mean_efas",), "Mean |EFAS|": ("mean_abs_efas",),
    "Ablated": ("n_ablated",), "Mean shift (nats)": ("mean_shift",), "Mean KL (nats)": ("mean_kl",),
    "Edited": ("n_edited",), "ΔE (nats)": ("delta",), "First order": ("first_order",), "Predicted": ("predicted",),
    "ΔE a token": ("delta_per_token",), "Isotropic": ("isotropic_per_token",),
    "By covariance": ("covariance_per_token",), "Other feature": ("decoder_per_token",),
    "Predicted sign": ("n_same_sign",),
    "Share with it": ("share_same_sign",), "With an interval": ("n_intervals",), "Confirmed": ("n_confirmed",),
    "Share confirmed": ("share_confirmed",), "Contradicted": ("n_contradicted",), "Disattenuated": ("disattenuated",),
    "KL a token": ("kl_per_token",),
    "Top changed": ("top_changed_edited",), "Backward passes": ("backward_passes",), "Pearson": ("pearson",),
    "Per token": ("per_token",), "Partial": ("partial",), "Transfer": ("transfer",), "β": ("beta",),
    "Entropy (nats)": ("entropy",), "Largest basin": ("largest_share",), "Perplexity, start": ("perplexity_start",),
    "and end": ("perplexity",), "Nearest row kept": ("argmax_agreement",), "Unconverged": ("unconverged_share",),
    "Attractor": ("attractor",), "Perplexity": ("perplexity",), "First feature": ("feature",), "Weight": ("weight",),
    "Lift": ("label_lift",), "Read at": ("later_layer",), "Settled tokens": ("n_settled",),
    "p": ("p",), "Feature − control": ("difference",),
    "Basin changed": ("p_changed",), "1 − cosine": ("distance",), "ΔE_H": ("delta_network_energy",),
}  # fmt: skip
TEXTS = {"Energy", "Correlated over", "Category", "Fires most on", "Role", "sha256", "Hook"}
TEXTS |= {"Class", "Edit", "Predictor", "Dictionary", "Type", "fires most on", "Label", "Patch", "Place", "Direction"}
TEXTS |= {"What grows", "Along"}

#: Headings of figures with three significant digits.
SIGNIFICANT = {"Mean", "SD", "5 %", "Median", "95 %", "β", "Perplexity", "Perplexity, start", "and end"}

#: What an interval is of, by query.
INTERVALS = {
    "reports/intervention_effects": ("delta",),
    "reports/predictor_validation": ("spearman", "transfer", "disattenuated"),
    "reports/dose_exponents": ("p", "difference"),
}

Table = tuple[str, list[str], list[list[str]]]  # query, headings, rows of cells


@pytest.fixture(scope="module")
def report(complete_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report's folder; tests only read it."""
    output = tmp_path_factory.mktemp("report") / "out"
    render(complete_warehouse, output)
    return output


@pytest.fixture
def copied(complete_warehouse: Path, tmp_path: Path) -> Callable[[str], Path]:
    """copied(statement): a copy of the warehouse that a statement has changed."""

    def change(*statements: str) -> Path:
        db = tmp_path / "copy.duckdb"
        shutil.copy(complete_warehouse, db)
        with Warehouse(db, writable=True) as warehouse:
            for text in statements:
                warehouse.sql(text)
        return db

    return change


def answers_of(report: Path) -> dict[str, list[dict[str, Any]]]:
    """{query: rows} of raw_results.json."""
    raw = json.loads((report / "raw_results.json").read_text(encoding="utf-8"))
    return {
        query["name"]: [dict(zip(query["columns"], row, strict=True)) for row in query["rows"]]
        for query in raw["queries"]
    }


# ------------------------------------------------------------------------------------------------ reading a report


class _Page(HTMLParser):
    """Tables, tags and identifiers of an HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "table":
            self.tables.append((dict(attrs)["data-query"] or "", [], []))
        elif tag == "tr" and self.tables[-1][1]:
            self.tables[-1][2].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "th":
            self.tables[-1][1].append("".join(self._cell or []))
        elif tag == "td":
            self.tables[-1][2][-1].append("".join(self._cell or []))
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


def page_of(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    return page


def assert_harmless_links(page: _Page) -> None:
    """Links lead to sections of the page that are there, or to the literature."""
    links = [value or "" for name, value in page.attributes if name == "href"]
    for link in links:
        assert link.removeprefix("#") in page.ids or re.match(
            r"https://(arxiv\.org|doi\.org|www\.lesswrong\.com)/", link
        )


def markdown_tables(text: str) -> Iterator[Table]:
    """Tables with their queries; the cells as they are written."""
    for block, query in re.findall(r"((?:^\|.*\|\n)+)\n\*Query `([^`]*)`\.\*$", text, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        head, _, *rows = [[cell.strip().replace("\\|", "|") for cell in line] for line in lines]
        if any(head):  # the facts of the run have no headings
            yield query, head, rows


def tables_of(report: Path, kind: str) -> list[Table]:
    text = (report / f"research_report.{kind}").read_text(encoding="utf-8")
    return page_of(text).tables if kind == "html" else list(markdown_tables(text))


NUMBER = re.compile(r"−?\d[\d,]*(?:\.\d+)?(?:e−?\d+)?")


def numbers(cell: str) -> list[tuple[float, float]]:
    """(value, half a unit of its last digit) of every number in a cell."""
    found = []
    for text in NUMBER.findall(cell):
        plain = text.replace(",", "").replace("−", "-")
        mantissa, _, exponent = plain.partition("e")
        decimals = len(mantissa.partition(".")[2])
        found.append((float(plain), 0.5 * 10.0 ** (int(exponent or 0) - decimals)))
    return found


def rows_of(table: Table, answers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of its query that a table shows."""
    query, headings, rows = table
    own = answers[query]
    if query == "reports/alignment_by_layer":
        own = [row for row in own if row["gradient"] == "decoder"]
    if query == "reports/top_features":
        is_control = "score_active" in headings
        own = [row for row in own if row["is_control"] == is_control]
        if not is_control:  # a table for each energy, told by its features
            shown = [row[0] for row in rows]
            by_energy = [[row for row in own if row["energy"] == name] for name in {row["energy"] for row in own}]
            (own,) = (some for some in by_energy if [f"{row['layer']}:{row['feature']}" for row in some] == shown)
    assert len(own) == len(rows), query
    return own


def assert_cell_shows(heading: str, cell: str, row: dict[str, Any], place: tuple[str, ...]) -> None:
    """Every number of a cell is its column's value, rounded as shown."""
    values = [row[column] for column in place if column in row]
    if heading == "q_specific < 0.05":
        values = values[:1]  # one column of two queries
    shown = numbers(cell)
    if values[0] is None:
        assert not shown, (heading, cell)
        return
    scale = 100 if cell.endswith("%") else 1
    for value, (number, half) in zip(values, shown, strict=True):
        # From a hundred on, three digits are significant.
        is_rounded = heading in SIGNIFICANT or place[0].startswith("attribution")
        slack = 0.005 * abs(value) if is_rounded else 0
        assert abs(number - scale * value) <= max(1.001 * half, slack), (heading, cell, value)


# ------------------------------------------------------------------------------------------------ files and numbers


def test_files_are_written(complete_warehouse: Path, tmp_path: Path) -> None:
    """The paths that are returned are the files, and there are no others."""
    written = render(complete_warehouse, tmp_path / "a" / "b", ("md",))
    assert {path.relative_to(tmp_path / "a" / "b").as_posix() for path in written} == {
        "research_report.md", "raw_results.json", *(f"figures/{name}.svg" for name in FIGURES),
    }  # fmt: skip
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(written)
    assert (tmp_path / "a" / "b" / "research_report.html") not in written


@pytest.mark.parametrize("kind", ["md", "html"])
def test_every_number_of_a_table_is_its_querys(report: Path, kind: str) -> None:
    """Each cell of each table is the column of its query, to the digits shown."""
    answers = answers_of(report)
    tables = tables_of(report, kind)
    assert len(tables) >= 10
    n_checked = 0
    for table in tables:
        query, headings, rows = table
        interval_of = iter(INTERVALS.get(query, ()))
        places = {}
        for i, heading in enumerate(headings):
            if heading == "95 % interval":
                own = next(interval_of)
                places[i] = (f"{own}_low", f"{own}_high")
            elif heading not in TEXTS:
                places[i] = SHOWN[heading]
        for cells, row in zip(rows, rows_of(table, answers), strict=True):
            for i, place in places.items():
                if cells[i] not in ("all", "output", "none"):
                    assert_cell_shows(headings[i], cells[i], row, place)
                    n_checked += 1
    assert n_checked > 300


def test_both_formats_show_the_same_tables(report: Path) -> None:
    """Markdown and HTML differ in markup only."""
    for (query, headings, rows), (other, same_headings, same_rows) in zip(
        tables_of(report, "md"), tables_of(report, "html"), strict=True
    ):
        assert (query, headings) == (other, same_headings)
        numeric = [i for i, heading in enumerate(headings) if heading not in TEXTS]
        assert [[row[i] for i in numeric] for row in rows] == [[row[i] for i in numeric] for row in same_rows]


def test_raw_results_are_the_queries_answers(report: Path, complete_warehouse: Path) -> None:
    """raw_results.json equals what each query answers in a session of its own."""
    raw = {query["name"]: query for query in json.loads((report / "raw_results.json").read_text())["queries"]}
    assert list(raw) == queries.names()
    with Warehouse(complete_warehouse) as warehouse:
        for name, query in raw.items():
            result = warehouse.run(name)
            assert query["columns"] == result.columns
            assert query["answers"] == queries.question(name)
            for stored, row in zip(query["rows"], result.fetchall(), strict=True):
                for value, expected in zip(stored, row, strict=True):
                    if isinstance(expected, float):
                        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12), name
                    elif isinstance(expected, int | str | bool | type(None)):
                        assert value == expected, name


@pytest.mark.parametrize("name", queries.names())
def test_every_query_runs_says_what_it_answers_and_is_used(name: str, report: Path) -> None:
    """Each file in sql/reports opens with a comment, and both documents name it."""
    assert len(queries.question(name)) > 30
    assert not queries.question(name).startswith("SELECT")
    assert statement(name).startswith("-- ")
    for kind in ("md", "html"):
        assert name in (report / f"research_report.{kind}").read_text(encoding="utf-8")


def uncalibrated_layers(db: Path) -> set[tuple[str, int]]:
    """(energy, layer) at which a lens costs more than a uniform guess over the 512 words of the tiny models."""
    with Warehouse(db) as warehouse:
        means = warehouse.sql(
            "SELECT energy, layer, avg(value) FROM energies WHERE energy LIKE '%_lens' GROUP BY ALL"
        ).fetchall()
    return {(energy, layer) for energy, layer, mean in means if mean > math.log(512)}


def of_layer(frame: pl.DataFrame, row: dict[str, Any], uncalibrated: set[tuple[str, int]]) -> pl.DataFrame:
    """The part of a frame of one energy that a row of the report is about: a layer, or all calibrated ones."""
    if row["layer"] is not None:
        return frame.filter(pl.col("layer") == row["layer"])
    return frame.filter(~pl.col("layer").is_in([layer for energy, layer in uncalibrated if energy == row["energy"]]))


def test_alignment_is_recounted_from_efas(report: Path, complete_warehouse: Path) -> None:
    """Counts and quantiles by layer equal those taken from efas with numpy."""
    answers = answers_of(report)["reports/alignment_by_layer"]
    uncalibrated = uncalibrated_layers(complete_warehouse)
    with Warehouse(complete_warehouse) as warehouse:
        efas = warehouse.sql("SELECT * FROM efas WHERE category = 'all'").pl()
    assert {row["energy"] for row in answers} == set(efas["energy"])
    for row in answers:
        own = efas.filter((efas["energy"] == row["energy"]) & (efas["gradient"] == row["gradient"]))
        own = of_layer(own, row, uncalibrated)
        assert row["is_uncalibrated"] == ((row["energy"], row["layer"]) in uncalibrated)
        score = own["score"].drop_nulls().to_numpy()
        assert row["n_firing"] == (own["n_active"] > 0).sum()
        for n_tested, n_significant, name in (
            ("n_tested", "n_significant", "q_value"),
            ("n_tested_specific", "n_specific", "q_specific"),
            ("n_tested_documents", "n_significant_documents", "q_documents"),
        ):
            q = own[name].drop_nulls().to_numpy()
            assert (row[n_tested], row[n_significant]) == (len(q), (q < 0.05).sum()), name
        found = own.filter(own["q_specific"] < 0.05)
        assert row["n_specific_positive"] == (found["t_specific"] > 0).sum()
        assert row["n_specific_positive"] + row["n_specific_negative"] == len(found)
        if len(found):
            sizes = found["score"].abs()
            assert [row[f"{name}_specific"] for name in ("smallest", "median", "largest")] == pytest.approx(
                [sizes.min(), sizes.median(), sizes.max()]
            )
            assert row["cosine_specific"] == pytest.approx(found["cosine"].abs().median())
        p = own["p_specific"].drop_nulls().to_numpy()
        at_once = int((stats.false_discovery_control(p) < 0.05).sum()) if len(p) else None
        assert row["n_specific_at_once"] == (at_once if row["layer"] is None else None)
        assert row["score_largest"] == pytest.approx(np.abs(score).max())
        assert [row[f"score_{q}"] for q in ("q05", "q25", "median", "q75", "q95")] == pytest.approx(
            np.quantile(score, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
        )
        assert row["n_attributed"] == own["q_attribution"].count()
        predicted = own.filter(own["q_attribution"] < 0.05).select(
            pl.coalesce("attribution_curvature", "attribution").alias("sum")
        )["sum"]
        assert (row["n_supports"], row["n_opposes"]) == ((predicted > 0).sum(), (predicted < 0).sum())


def test_the_headline_counts_what_efas_holds(report: Path, complete_warehouse: Path) -> None:
    """The first sentence of the finding gives the pairs of nll that are aligned in their own direction."""
    with Warehouse(complete_warehouse) as warehouse:
        found, tested = warehouse.sql(
            "SELECT count(*) FILTER (q_specific < 0.05), count(q_specific) FROM efas "
            "WHERE energy = 'nll' AND gradient = 'decoder' AND category = 'all'"
        ).fetchall()[0]
    first = f"**{found:,} of {tested:,} tested" if found else f"**None of {tested:,} tested"
    assert first in (report / "research_report.md").read_text(encoding="utf-8")


def test_replication_is_scipys_rank_correlation(report: Path, complete_warehouse: Path) -> None:
    """Spearman between halves equals scipy's; what is found, its sizes and the variances are numpy's."""
    with Warehouse(complete_warehouse) as warehouse:
        halves = warehouse.sql("SELECT * FROM efas_halves WHERE gradient = 'decoder' AND category = 'all'").pl()
    uncalibrated = uncalibrated_layers(complete_warehouse)
    rows = answers_of(report)["reports/replication"]
    assert {row["layer"] for row in rows} == {None, 1, 2}
    for row in rows:
        own = of_layer(halves.filter(halves["energy"] == row["energy"]), row, uncalibrated)
        a = own.filter(own["half"] == "A").sort("layer", "feature")
        b = own.filter(own["half"] == "B").sort("layer", "feature")
        both = a.join(b, on=["layer", "feature"], suffix="_b")
        common = both.filter((both["n_active"] >= 50) & (both["n_active_b"] >= 50))
        assert row["n_features"] == len(common)
        assert row["spearman"] == pytest.approx(stats.spearmanr(common["score"], common["score_b"]).statistic)
        found = both.filter(both["q_specific"] < 0.05)
        retested = found.filter(found["t_specific_b"].is_not_null())
        again = retested.filter(retested["t_specific"] * retested["t_specific_b"] > 0)
        assert (row["n_found"], row["n_retested"], row["n_same_sign"]) == (len(found), len(retested), len(again))
        assert row["n_confirmed"] == (again["p_specific_b"] < 0.05).sum()
        if len(retested):
            a_score, b_score = retested["score"].to_numpy(), retested["score_b"].to_numpy()
            assert row["selected_size"] == pytest.approx(np.abs(a_score).mean())
            assert row["replicated_size"] == pytest.approx((b_score * np.sign(a_score)).mean())
            assert row["replicated_share"] == pytest.approx(row["replicated_size"] / row["selected_size"])
        for name, variance in (("z", "z_variance"), ("z_null", "z_null_variance")):
            differences = (both[name] - both[f"{name}_b"]).drop_nulls()
            assert row[variance] == pytest.approx(differences.var() / 2)


def test_noise_floor_is_that_of_independent_pairs() -> None:
    """The noise that the report compares with, 1 / √(n − 1), is the spread of r over n independent pairs."""
    generator = np.random.default_rng(0)
    for n in (5, 30):
        a, g = generator.standard_normal((2, 4_000, n))
        r = stats.pearsonr(a, g, axis=1).statistic
        assert np.sqrt(np.mean(r**2)) == pytest.approx(1 / math.sqrt(n - 1), rel=0.05)


def test_noise_beside_what_was_found_is_that_of_students_t(report: Path, complete_warehouse: Path) -> None:
    """How many correlations noise puts above 0.7, and the median of its largest, by scipy's t of as many tokens."""
    with Warehouse(complete_warehouse) as warehouse:
        efas = warehouse.sql("SELECT * FROM efas WHERE gradient = 'decoder' AND category = 'all' AND n_active > 0").pl()
    for row in answers_of(report)["reports/noise_floor"]:
        counted, r, n = (
            row["counted"],
            *(("score_active", "n_active") if row["counted"] == "active" else ("score", "n_tokens")),
        )
        own = efas.filter((pl.col("energy") == row["energy"]) & pl.col(r).is_not_null())
        if counted == "active" and row["from_tokens"] is not None:
            own = own.filter(pl.col(n).is_between(row["from_tokens"], row["to_tokens"] or 1 << 60))
        sizes, tokens = own[r].abs().to_numpy(), own[n].to_numpy()

        def beyond(size: float, tokens: Any = tokens) -> Any:
            return 2 * stats.t.sf(size * np.sqrt((tokens - 2) / (1 - size**2)), tokens - 2)

        assert (row["n_features"], row["n_above"]) == (len(own), (sizes > 0.7).sum())
        assert row["largest"] == pytest.approx(sizes.max())
        assert row["noise_above"] == pytest.approx(beyond(0.7).sum(), rel=0.02, abs=1e-6)
        assert row["is_above_noise"] == (row["n_above"] > row["noise_above"] + 2 * math.sqrt(row["noise_above"]))
        # As likely as not the largest of these draws is below.
        nearby = [np.prod(1 - beyond(row["noise_largest"] * factor)) for factor in (0.98, 1.0)]
        assert nearby[0] < 0.52
        assert nearby[1] > 0.48


def test_what_ablations_can_tell_is_recounted(report: Path, complete_warehouse: Path) -> None:
    """Intervals apart from 0, and effects beyond every control direction, with numpy."""
    with Warehouse(complete_warehouse) as warehouse:
        effects = warehouse.sql("SELECT * FROM intervention_effects WHERE category = 'all' AND kind = 'ablate'").pl()
    own = effects.filter(pl.col("direction") == 0)
    apart = ((own["delta_low"] > 0) | (own["delta_high"] < 0)).fill_null(False)
    beyond = []
    for feature, delta in own.select("feature", "delta_per_token").iter_rows():
        controls = effects.filter((pl.col("direction") > 0) & (pl.col("feature") == feature))["delta_per_token"]
        beyond.append(abs(delta) > controls.abs().max())
    (row,) = answers_of(report)["reports/ablations"]
    assert row["n_ablated"] == len(own) > 0
    assert (row["n_intervals"], row["n_controlled"]) == (own["delta_low"].count(), len(own))
    assert (row["n_apart"], row["n_beyond"]) == (apart.sum(), sum(beyond))
    assert row["n_apart_and_beyond"] == (apart & pl.Series(beyond)).sum()
    assert "ablated features" in abstract_of(report)


def test_hashes_are_those_of_what_was_read(report: Path, complete_warehouse: Path) -> None:
    """The corpus' sha256 is of its documents' own, sorted; the others stand in the run; both documents have all."""
    with Warehouse(complete_warehouse) as warehouse:
        documents = [sha for (sha,) in warehouse.sql("SELECT sha256 FROM documents").fetchall()]
        run = warehouse.sql("SELECT identity, model_sha256, tokenizer_sha256 FROM current_run").fetchone()
        saes = [sha for (sha,) in warehouse.sql("SELECT sae_sha256 FROM saes").fetchall()]
    corpus = hashlib.sha256("\n".join(sorted(documents)).encode()).hexdigest()
    for kind in ("md", "html"):
        text = (report / f"research_report.{kind}").read_text(encoding="utf-8")
        assert all(sha in text for sha in (corpus, *run, *saes))
        assert f"duckdb {version('duckdb')}" in text


def test_histogram_holds_every_tested_feature(report: Path) -> None:
    """Bins of z and of z_null each add up to the tested features."""
    answers = answers_of(report)
    tested = {row["energy"]: row["n_tested"] for row in answers["reports/null_control"] if row["layer"] is None}
    for energy, n_tested in tested.items():
        bins = [row for row in answers["reports/z_histogram"] if row["energy"] == energy]
        assert sum(row["n_true_pairing"] for row in bins) == n_tested
        assert sum(row["n_negative_control"] for row in bins) == n_tested


# ------------------------------------------------------------------------------------------------ the report's parts


def section(text: str, title: str) -> str:
    """A section of the Markdown report."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0].strip()


def abstract_of(report: Path) -> str:
    return section((report / "research_report.md").read_text(encoding="utf-8"), "Abstract")


def assert_five_sentences(abstract: str) -> None:
    assert len(re.findall(r"\.(?= |$)", abstract)) == 5, abstract
    assert "None" not in abstract
    assert "–" not in abstract  # a number that is not there
    assert "  " not in abstract


def test_the_abstract_has_five_sentences_of_the_answers(report: Path, complete_warehouse: Path) -> None:
    """What was run and found, beside noise, and what ablations tell."""
    abstract = abstract_of(report)
    assert_five_sentences(abstract)
    with Warehouse(complete_warehouse) as warehouse:
        tokens = warehouse.sql("SELECT stats_tokens FROM current_run").value()
        tested = warehouse.sql(
            "SELECT count(q_specific) FROM efas WHERE energy = 'nll' AND gradient = 'decoder' AND category = 'all'"
        ).value()
    assert f"read {tokens:,} tokens of " in abstract
    assert f"of {tested:,} tested features" in abstract
    floor = [row for row in answers_of(report)["reports/noise_floor"] if row["energy"] == "nll"]
    (active,) = (row for row in floor if row["counted"] == "active" and row["from_tokens"] is None)
    above = f"{active['n_above']:,}" if active["n_above"] else "none"
    assert re.search(rf"{above} of {active['n_features']:,} exceeds? 0\.7 with `nll`", abstract)


def test_the_contents_name_every_section(report: Path) -> None:
    """Each entry leads to a heading of both documents, in order, and no section is left out."""
    text = (report / "research_report.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    entries = re.findall(r"^- \[(.*)\]\(#(.*)\)$", section(text, "Contents"), re.MULTILINE)
    assert headings[:2] == ["Abstract", "Contents"]
    assert [title for title, _ in entries] == headings[2:]
    # What GitHub makes of a heading.
    assert [anchor for _, anchor in entries] == [
        "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_") for title, _ in entries
    ]
    page = page_of((report / "research_report.html").read_text(encoding="utf-8"))
    links = [value for name, value in page.attributes if name == "href" and value and value[0] == "#"]
    assert [link for link in links if link[1:] in [anchor for _, anchor in entries]] == [f"#{a}" for _, a in entries]


def test_contexts_are_those_in_which_a_feature_fires_hardest(report: Path, complete_warehouse: Path) -> None:
    """The first ten features of nll, three tokens each, the token marked in the text around it."""
    with Warehouse(complete_warehouse) as warehouse:
        top = answers_of(report)["reports/top_features"]
        wanted = [(row["layer"], row["feature"]) for row in top if row["energy"] == "nll"][:10]
        expected = []
        for layer, feature in wanted:
            key = {"layer": layer, "feature": feature}
            examples = 'SELECT token_ids[1:3] FROM activation_intervals WHERE "interval" = 0 AND layer = $layer '
            for token_id in warehouse.sql(examples + "AND feature = $feature", **key).value():
                fired = warehouse.sql(
                    "SELECT text, activation FROM activations JOIN tokens USING (run_id, token_id) "
                    "WHERE layer = $layer AND feature = $feature AND token_id = $token", **key, token=token_id,
                ).fetchone()  # fmt: skip
                assert fired is not None
                expected.append((formatting.visible_token(fired[0]), formatting.significant(fired[1])))
    html = (report / "research_report.html").read_text(encoding="utf-8")
    found = re.findall(
        r'<p class="context"[^>]*>.*?<mark>(.*?)</mark>.*?</p>\s*<p class="source">.*?a = ([^,<]*)', html
    )
    assert [(unescape(text), a) for text, a in found] == expected
    text = section((report / "research_report.md").read_text(encoding="utf-8"), "Where they fire")
    assert [f"{layer}:{feature}" for layer, feature in wanted] == re.findall(r"^\*\*(\d+:\d+)\*\*", text, re.MULTILINE)
    assert len(re.findall("^- ", text, re.MULTILINE)) == len(expected)


def test_a_run_without_cards_says_how_to_have_contexts(copied: Callable[..., Path], tmp_path: Path) -> None:
    db = copied("DELETE FROM activation_histogram", "DELETE FROM activation_intervals")
    render(db, tmp_path / "out")
    for kind in ("md", "html"):
        text = (tmp_path / "out" / f"research_report.{kind}").read_text(encoding="utf-8")
        assert "once the cards of the run are built" in text
        assert "elw features build" in text


def test_a_dense_cloud_is_a_small_bitmap() -> None:
    """A bitmap of many shades keeps its size and becomes small, the same way each time; the rest of the SVG stays."""
    from PIL import Image

    generator = np.random.default_rng(0)
    shades = generator.integers(0, 255, (300, 400, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shades, "RGBA").save(buffer, "png")
    svg = f'<svg><image xlink:href="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"/><g/></svg>'
    small = with_small_bitmaps(svg)
    assert len(small) < len(svg) / 2
    assert small == with_small_bitmaps(svg)
    assert re.sub('base64,[^"]*', "", small) == re.sub('base64,[^"]*', "", svg)
    encoded = re.search(r'base64,([^"]*)"', small)
    assert encoded is not None
    with Image.open(io.BytesIO(base64.b64decode(encoded[1]))) as image:
        assert image.size == (400, 300)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=8), st.integers(0, 7))
def test_a_running_text_stays_text(texts: list[str], mark: int) -> None:
    """Whatever the tokens, also where two meet: one line, no markup but the mark's."""
    pieces = [formatting.TextPiece(text, i == mark % len(texts), i % 2 == 0) for i, text in enumerate(texts)]
    shown = formatting.running_markdown(pieces)
    assert len(shown.splitlines()) <= 1
    outside_code = re.sub(r"`[^`]*`|<code>.*?</code>", "", shown)
    assert not re.search(r"(?<!\\)[*_\[\]<]|`", outside_code)
    html = str(formatting.running_html(pieces))
    assert html.count("<mark>") == 1
    assert not re.search(r"<(?!/?(?:mark|u)>)", html)


# ------------------------------------------------------------------------------------------------ determinism


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_warehouse_gives_the_same_bytes(report: Path, complete_warehouse: Path, tmp_path: Path) -> None:
    """In another process, with another hash seed and the reader's own matplotlib settings too."""
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\naxes.grid: False\n")
    code = "import sys; from pathlib import Path; from energy_lens.reports.render import render; " \
        "render(Path(sys.argv[1]), Path(sys.argv[2]))"  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
        "TZ": "Asia/Tokyo",
    }
    subprocess.run([sys.executable, "-c", code, complete_warehouse, tmp_path / "again"], check=True, env=environment)
    assert contents(tmp_path / "again") == contents(report)


# ------------------------------------------------------------------------------------------------ foreign text


HOSTILE = "`|<script>alert(1)</script>\n# [x](javascript:y) **b** \u202e \\| &lt;"


def test_hostile_tokens_and_names_are_shown_not_obeyed(copied: Callable[..., Path], tmp_path: Path) -> None:
    """Markup, pipes, backticks and line breaks in tokens, categories and model names change no structure."""
    quoted = HOSTILE.replace("'", "''")
    db = copied(
        f"UPDATE tokens SET text = '{quoted}'",
        f"UPDATE documents SET category = category || '{quoted}'",
        f"UPDATE feature_statistics SET category = category || '{quoted}' WHERE category <> 'all'",
        f"UPDATE runs SET model = '{quoted}'",
    )
    render(db, tmp_path / "out")
    page = page_of((tmp_path / "out" / "research_report.html").read_text(encoding="utf-8"))
    assert not {"script", "img", "iframe"} & set(page.tags)
    assert_harmless_links(page)
    assert page.tags.count("h1") == 1
    tokens = [row[1] for query, _, rows in page.tables if query == "reports/top_features" for row in rows]
    assert tokens
    # The whole text is there, on one line: 40 characters of it, blanks and the rest seen.
    assert set(tokens) == {formatting.visible_token(HOSTILE)}
    assert tokens[0].startswith("`|<script>alert(1)</script>↵#␣[x]")

    text = (tmp_path / "out" / "research_report.md").read_text(encoding="utf-8")
    outside_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "<script" not in outside_code
    assert "\u202e" not in text
    assert [line for line in text.splitlines() if line.startswith("# ")] == [text.splitlines()[0]]
    for _, headings, rows in markdown_tables(text):
        assert {len(row) for row in rows} == {len(headings)}

    for name in FIGURES:
        ElementTree.parse(tmp_path / "out" / "figures" / f"{name}.svg")


@given(st.text(max_size=30))
def test_markdown_of_any_text_stays_in_its_cell(text: str) -> None:
    """No text opens markup, ends a cell, or breaks a line."""
    for cell in (formatting.Foreign(text), formatting.Tokens((text, text))):
        shown = formatting.markdown_cell(cell)
        assert len(shown.splitlines()) <= 1
        assert "|" not in shown
        outside_code = re.sub(r"`[^`]*`", "", shown)
        assert not re.search(r"<(?!/?code>)|(?<!\\)[*_\[\]]|`", outside_code)
    assert "<script" not in formatting.html_cell(formatting.Foreign(text + "<script>"))


def test_shared_prose_is_escaped_in_html() -> None:
    """A name inside the prose that both formats share cannot open a tag."""
    from markupsafe import Markup

    prose = Markup(f"**None** of {formatting.code('<b>`x')} has q < 0.05")
    shown = formatting.prose_as_html(prose)
    assert shown.startswith("<strong>None</strong> of <code>&lt;b&gt;")
    assert shown.endswith("q\N{NO-BREAK SPACE}&lt;\N{NO-BREAK SPACE}0.05")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formatting.significant(0.07361), "0.0736"),
        (formatting.significant(-58.94), "−58.9"),
        (formatting.significant(99.96), "100"),
        (formatting.significant(1_338_201.4), "1,340,000"),
        (formatting.significant(0.0), "0"),
        (formatting.significant(-3.2e-7), "−3.20e−07"),
        (formatting.fixed(-0.0004), "0.000"),
        (formatting.fixed(1234.5678, 1), "1,234.6"),
        (formatting.percent(0.0534), "5.3 %"),
        (formatting.probability(0.04249), "0.042"),
        (formatting.probability(2.1277e-21), "2.1e−21"),
        (formatting.probability(0.0), "0.000"),
        (formatting.interval(-1.5, None), "–"),
        (formatting.listing([10, 12, 15]), "10, 12 and 15"),
    ],
)
def test_numbers_as_shown(shown: str, expected: str) -> None:
    """Digits, signs and thousands."""
    assert shown == expected


# ------------------------------------------------------------------------------------------------ figures


def texts_of(path: Path) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.parse(path).iter(f"{SVG}text")]


def test_figures_are_svg_with_text(report: Path) -> None:
    """Labels are text, numbers are finite, and layers, categories and controls are named."""
    for name in FIGURES:
        source = (report / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert not re.search(r"\b(nan|inf)\b", source)
        assert "mathdefault" not in source
    assert {"1", "2", "nll", "hopfield (positive control)"} <= set(texts_of(report / "figures" / "efas_by_layer.svg"))
    assert {"code", "natural", "E (nats)"} <= set(texts_of(report / "figures" / "energy_by_layer_and_category.svg"))
    rows = answers_of(report)["reports/attribution_and_density"]
    labels = texts_of(report / "figures" / "attribution_and_density.svg")
    counts = Counter((row["energy"], row["role"]) for row in rows)
    assert {energy for energy, _ in counts} == {"nll", "logit_lens", "tuned_lens", "attention"}
    for (_, role), n in counts.items():
        assert f"{role} ({n:,})" in labels


def test_page_is_one_file_with_distinct_identifiers(report: Path) -> None:
    """Figures are inlined without clashes, and nothing is fetched."""
    page = page_of((report / "research_report.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == len(FIGURES)
    assert len(page.ids) == len(set(page.ids))
    fetched = [
        value
        for name, value in page.attributes
        if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:"))
    ]
    assert not [value for value in fetched if not re.match(r"https://(arxiv|doi|www\.lesswrong)\.", value)]
    assert_harmless_links(page)


# ------------------------------------------------------------------------------------------------ small runs


@pytest.mark.parametrize("energy", ["nll", "hopfield"])
def test_one_document_one_layer_one_energy(
    energy: str, tiny: Callable[[str], Any], small_corpus: Path, tmp_path: Path
) -> None:
    """With nothing to test, no interval and no halves, the report says so."""
    from energy_lens.ingest.pipeline import IngestOptions, ingest

    model = tiny("llama")
    document = sorted((small_corpus / "code").glob("*.txt"))[0]
    options = IngestOptions(
        db=tmp_path / "one.duckdb", model=str(model.folder), saes=(model.saes,), layers=(1,), context_length=32,
        dtype="float32",
    )  # fmt: skip
    ingest([document], options)
    with Warehouse(options.db, writable=True) as warehouse:
        warehouse.sql(f"UPDATE runs SET energies = ['{energy}'], energy_units = [units_of('{energy}')]")
        tables = (
            "run_energies",
            "energies",
            "gradients",
            "document_gradients",
            "feature_moments",
            "feature_statistics",
            "layer_energies",
            "layer_losses",
        )
        for table in tables:
            warehouse.sql(f"DELETE FROM {table} WHERE energy <> '{energy}'")
    render(options.db, tmp_path / "out")
    text = (tmp_path / "out" / "research_report.md").read_text(encoding="utf-8")
    assert "The negative controls are empty" in text
    assert_five_sentences(abstract_of(tmp_path / "out"))
    if energy == "hopfield":
        assert "is no finding" in abstract_of(tmp_path / "out")
    if energy == "nll":
        assert "so nothing can be told from noise" in abstract_of(tmp_path / "out")
        assert "**No feature could be tested against `nll`.**" in text
        assert "The run has no positive control" in text
        assert "There is nothing to compare between halves" in text
    assert "None" not in text.replace("None of", "")
    for name in ("efas_by_layer", "attribution_and_density", "energy_by_layer_and_category"):
        assert texts_of(tmp_path / "out" / "figures" / f"{name}.svg")
    for name in ("negative_control", "direction_control"):
        assert not (tmp_path / "out" / "figures" / f"{name}.svg").exists()


def test_features_that_align_lead_the_table(copied: Callable[..., Path], tmp_path: Path) -> None:
    """Where some pairs have q_specific < 0.05, only these are listed, by |t_specific|."""
    db = copied(
        "UPDATE feature_statistics SET q_specific = CASE WHEN feature < 5 THEN 0.01 ELSE 0.9 END "
        "WHERE energy = 'nll' AND q_specific IS NOT NULL"
    )
    render(db, tmp_path / "out", ("md",))
    rows = [row for row in answers_of(tmp_path / "out")["reports/top_features"] if row["energy"] == "nll"]
    assert {row["feature"] for row in rows} == set(range(5))
    sizes = [abs(row["t_specific"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    text = (tmp_path / "out" / "research_report.md").read_text(encoding="utf-8")
    first = "**10 of 128 tested (layer, feature) pairs (7.8 %) align with the `nll` gradient in their own direction"
    assert f"{first} at q_specific < 0.05**" in text


def test_attribution_is_a_share_of_the_loss_of_included_tokens(report: Path, complete_warehouse: Path) -> None:
    """For losses, read at the output or at layers, and for no other energy."""
    rows = answers_of(report)["reports/top_features"]
    losses = {"nll", "logit_lens", "tuned_lens"} & {row["energy"] for row in rows}
    assert losses == {row["energy"] for row in rows if row["attribution_share"] is not None}
    with Warehouse(complete_warehouse) as warehouse:
        values = warehouse.sql("SELECT energy, layer, token_id, value FROM energies").pl()
        included = warehouse.sql("SELECT layer, token_id FROM token_layers WHERE included").pl()
    for row in rows:
        assert row["attribution_per_token"] == pytest.approx(row["attribution"] / row["n_active"])
        if row["attribution_share"] is not None:
            of_energy = values.filter(pl.col("energy") == row["energy"])
            if row["energy"] != "nll":
                of_energy = of_energy.filter(pl.col("layer") == row["layer"])
            tokens = included.filter(pl.col("layer") == row["layer"])
            total = of_energy.join(tokens, on="token_id", how="semi")["value"].sum()
            assert row["attribution_share"] == pytest.approx(row["attribution"] / total)


def test_a_run_of_before_the_test_of_the_direction_says_so(copied: Callable[..., Path], tmp_path: Path) -> None:
    """Its columns are NULL: no headline says that nothing aligns, and the lists say by what they are ranked."""
    db = copied(
        "UPDATE feature_statistics SET cosine = NULL, t_specific = NULL, p_specific = NULL, q_specific = NULL, "
        "p_reference = NULL, sum_sd2 = NULL, p_documents = NULL, q_documents = NULL, q_attribution = NULL",
        "UPDATE runs SET settings = replace(settings, '\"statistics_version\": 3', '\"statistics_version\": 2')",
    )
    render(db, tmp_path / "out")
    text = (tmp_path / "out" / "research_report.md").read_text(encoding="utf-8")
    assert "**This run was made before the test of the direction (version 2 of the statistics): ingest again" in text
    assert "None of" not in text
    assert "the run has no test of the direction. These have the most extreme z" in text
    assert not (tmp_path / "out" / "figures" / "direction_control.svg").exists()


def test_own_and_reference_rows_are_counted_below_each_level(report: Path, complete_warehouse: Path) -> None:
    """The counts of the figure are numpy's."""
    with Warehouse(complete_warehouse) as warehouse:
        efas = warehouse.sql("SELECT * FROM efas WHERE category = 'all' AND p_specific IS NOT NULL").pl()
    rows = answers_of(report)["reports/direction_control"]
    assert {row["energy"] for row in rows} == set(efas["energy"])
    for row in rows:
        own = efas.filter(efas["energy"] == row["energy"])
        assert row["n_tested"] == len(own)
        assert row["n_own"] == (own["p_specific"] <= row["level"]).sum()
        assert row["n_reference"] == (own["p_reference"] <= row["level"]).sum()


def test_statistics_that_lag_are_announced(copied: Callable[..., Path], tmp_path: Path) -> None:
    """A run whose statistics are behind its tokens says how far, and what to do."""
    render(copied("UPDATE runs SET stats_tokens = 1000"), tmp_path / "out", ("md",))
    text = (tmp_path / "out" / "research_report.md").read_text(encoding="utf-8")
    assert re.search(r"\*\*The statistics cover 1,000 of \d+,\d{3} ingested tokens\*\*", text)
    assert "run the same `elw ingest` again" in text


# ------------------------------------------------------------------------------------------------ refusals


def refusal(kind: type[ElwError], db: Path, output: Path, formats: tuple[str, ...] = ("md", "html")) -> str:
    """The sentence with which a report is refused; one line, ending in a full stop."""
    with pytest.raises(kind) as caught:
        render(db, output, formats)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_nothing_to_report(copied: Callable[..., Path], tmp_path: Path) -> None:
    """A run without statistics and a warehouse without a run are refused, and no folder is made."""
    assert "cover no token yet" in refusal(ElwError, copied("UPDATE runs SET stats_tokens = 0"), tmp_path / "out")
    Warehouse(tmp_path / "empty.duckdb", writable=True).close()
    assert "holds no run" in refusal(ElwError, tmp_path / "empty.duckdb", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_format_and_output_that_is_a_file(complete_warehouse: Path, tmp_path: Path) -> None:
    """Both are usage errors."""
    assert "'pdf' is no format" in refusal(UsageError, complete_warehouse, tmp_path / "out", ("md", "pdf"))
    (tmp_path / "file").write_text("mine")
    assert "is a file, not a folder" in refusal(UsageError, complete_warehouse, tmp_path / "file")
    assert "cannot be written" in refusal(ElwError, complete_warehouse, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk_leaves_nothing_half_written(
    is_new: bool, report: Path, complete_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier report stays as it was; where there was none, nothing stays."""
    output = tmp_path / "out" / "deep"
    if not is_new:
        shutil.copytree(report, output)
        (output / "research_report.md").write_text("earlier")
    before = contents(tmp_path)
    write_text = Path.write_text

    def failing(self: Path, data: str, **options: Any) -> int:
        if "research_report" in self.name:
            write_text(self, data[: len(data) // 2], **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(self, data, **options)

    monkeypatch.setattr(Path, "write_text", failing)
    assert "No space left on device" in refusal(ElwError, complete_warehouse, output)
    assert contents(tmp_path) == before
    assert (tmp_path / "out").exists() != is_new


def test_an_uncalibrated_layer_is_shown_and_counted_in_no_total(copied: Callable[..., Path], tmp_path: Path) -> None:
    """Where a lens is made to cost more than a uniform guess, the layer says so and leaves every total and list."""
    db = copied("UPDATE energies SET value = value + 100 WHERE energy = 'logit_lens' AND layer = 1")
    render(db, tmp_path / "out", ("md",))
    answers = answers_of(tmp_path / "out")
    lens = [
        row for row in answers["reports/alignment_by_layer"]
        if row["energy"] == "logit_lens" and row["gradient"] == "decoder"
    ]  # fmt: skip
    by_layer = {row["layer"]: row for row in lens}
    calibrated = [row for layer, row in by_layer.items() if layer is not None and not row["is_uncalibrated"]]
    assert by_layer[1]["is_uncalibrated"]
    assert by_layer.get(None, {"n_tested": 0})["n_tested"] == sum(row["n_tested"] for row in calibrated)
    top = answers["reports/top_features"]
    assert not any(row["energy"] == "logit_lens" and row["layer"] == 1 for row in top)
    text = (tmp_path / "out" / "research_report.md").read_text(encoding="utf-8")
    assert "| 1 (uncalibrated) |" in text
    assert "Uncalibrated, with a mean above the uniform guess:" in text


def test_mutual_information_by_layer_is_the_views(report: Path, complete_warehouse: Path) -> None:
    """Means and rank correlation are numpy's and scipy's of the view's rows."""
    with Warehouse(complete_warehouse) as warehouse:
        frame = warehouse.sql(
            "SELECT m.*, abs(score) AS strength FROM mutual_information AS m "
            "JOIN efas AS e USING (run_id, layer, feature, energy, category) "
            "WHERE category = 'all' AND e.gradient = 'decoder' AND m.n_active >= 50 AND mi_excess IS NOT NULL"
        ).pl()
    uncalibrated = uncalibrated_layers(complete_warehouse)
    rows = answers_of(report)["reports/mutual_information"]
    assert rows
    for row in rows:
        own = of_layer(frame.filter(pl.col("energy") == row["energy"]), row, uncalibrated)
        assert row["n_features"] == len(own)
        assert row["excess_mean"] == pytest.approx(own["mi_excess"].mean(), abs=1e-12)
        ranked = own.drop_nulls("strength")
        expected = stats.spearmanr(ranked["mi_excess"], ranked["strength"]).statistic
        assert row["spearman"] == pytest.approx(expected, abs=1e-9)
