"""`elw features`, `feature`, `context` and `token`: what they print fits, hides nothing, and is what SQL says."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import wcwidth
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from energy_lens.analysis.attractors.run import AttractorOptions, find_attractors
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.run import intervene
from energy_lens.cli.main import main
from energy_lens.reports.cards import heat, terminal, terminal_contexts, verdicts
from energy_lens.reports.cards.as_json import as_json
from energy_lens.reports.cards.choosing import RANKINGS, ranked
from energy_lens.reports.cards.contexts import find_token, read_context
from energy_lens.reports.cards.heat import BLOCKS, Span, around, broken, fitted, rendered, shown, sparkline
from energy_lens.reports.cards.listing import table_rows
from energy_lens.reports.cards.reading import read_cards
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.output import write
from energy_lens.warehouse.terminal import shows_colours, visible, width

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")

#: Texts that would move a cursor, turn a line, be wider than they look, or be very long.
HOSTILE = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "<script>alert(1)</script>", "a\r\nb\tc", "\u202eabc\u2066", "x" * 10_000,
    "語" * 3_000, "👩‍👩‍👧‍👦", "❤", "\ufe0f", "\u0301\u0301", "🇩", "🇪", "\u200d", "\u200b\u00ad\u2060", "", " ", "«»",
    "\x00\x7f\x9b", "e\u0301" * 200, "\U000e0041", "ﷺ" * 50,
)  # fmt: skip


def table(db: Path, query: str, **parameters: Any) -> pl.DataFrame:
    with Warehouse(db) as warehouse:
        return warehouse.sql(query, **parameters).pl()


@pytest.fixture(scope="module")
def db(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny warehouse with a few interventions and attractors measured; only read it."""
    path = tmp_path_factory.mktemp("features") / "tiny.duckdb"
    shutil.copy(tiny_warehouse, path)
    intervene(path, InterventionOptions(layers=(1,), features=("top:2",), contexts=6, probes=1, doses=(0.5, 2.0)))
    find_attractors(path, AttractorOptions(layers=(1,), tokens=96))
    return path


@pytest.fixture(scope="module")
def hostile(db: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with hostile texts wherever a text comes from outside."""
    path = tmp_path_factory.mktemp("hostile") / "tiny.duckdb"
    shutil.copy(db, path)
    columns = (
        ("tokens", "text", "vocabulary_id"), ("feature_tokens", "text", "place + feature"),
        ("feature_logits", "text", "place + feature"), ("attractors", "label", "attractor"),
        ("documents", "path", "document_id"),
    )  # fmt: skip
    with Warehouse(path, writable=True) as warehouse:
        for name, column, number in columns:
            warehouse.sql(f"UPDATE {name} SET {column} = $texts[({number}) % {len(HOSTILE)} + 1]", texts=list(HOSTILE))
        warehouse.sql("UPDATE feature_activity SET top_tokens = list_slice($texts, feature % 15, 20)", texts=HOSTILE)
    return path


@cache
def all_read(db: Path) -> list[tuple[Callable[..., list[str]], Any]]:
    """(how it is shown, what is read) of every feature's card, and of some contexts and tokens."""
    found: list[tuple[Callable[..., list[str]], Any]] = []
    with Warehouse(db) as warehouse:
        for layer in (1, 2):
            rows = warehouse.sql("SELECT feature FROM features WHERE layer = $layer", layer=layer).fetchall()
            cards = read_cards(warehouse, layer, [feature for (feature,) in rows], window=terminal.WINDOW)
            assert len(cards) == len(rows) > 20
            found += [(terminal.card_lines, card) for card in cards.values()]
        last = warehouse.sql("SELECT max(context_id) FROM contexts").value()
        for energy, context in ((None, 0), ("hopfield", 3), ("attention", last)):
            found.append((terminal_contexts.context_lines, read_context(warehouse, context, energy, position=2)))
        ids = [id_ for (id_,) in warehouse.sql("SELECT DISTINCT vocabulary_id FROM tokens ORDER BY ALL").fetchall()]
        for id_ in ids[:: len(ids) // 4]:
            found.append((terminal_contexts.token_lines, find_token(warehouse, vocabulary_id=id_)))
    return found


def every_output(db: Path, columns: int, colours: bool) -> list[list[str]]:
    return [show(read, columns, colours) for show, read in all_read(db)]


def check_lines(lines: list[str], columns: int) -> None:
    for line in lines:
        plain = ESCAPE.sub("", line)
        assert visible(plain) == plain
        assert width(plain) <= columns, plain
        assert wcwidth.wcswidth(plain) <= columns, plain


# ------------------------------------------------------------------------------------------------ what fits, and hides


@pytest.mark.parametrize(("columns", "colours"), [(80, False), (97, True)])
def test_every_line_of_every_card_fits(db: Path, columns: int, colours: bool) -> None:
    for lines in every_output(db, columns, colours):
        check_lines(lines, columns)
        assert any("\x1b" in line for line in lines) is colours


@pytest.mark.parametrize("colours", [False, True])
def test_hostile_text_is_shown_as_text_and_fits(hostile: Path, colours: bool) -> None:
    for lines in every_output(hostile, 80, colours):
        check_lines(lines, 80)
        assert len(lines) < 1_000


@pytest.mark.parametrize("by", RANKINGS)
def test_a_list_fits_a_terminal_of_80(hostile: Path, by: str) -> None:
    with Warehouse(hostile) as warehouse:
        found = ranked(warehouse, by)
    stream = io.StringIO()
    assert write(table_rows(found, by, 80), "table", stream) == []
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(found) + 4  # none goes on in a second line
    check_lines(lines, 80)


def test_hostile_text_in_a_list_and_in_json(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "--db", str(hostile)]) == 0
    check_lines(capsys.readouterr().out.splitlines(), 200)
    name = table(hostile, "SELECT layer || ':' || feature AS f FROM features LIMIT 1")["f"][0]
    for words in (["feature", name], ["context", "0", "--token", "1"], ["token", "--id", "5"]):
        assert main([*words, "--format", "json", "--db", str(hostile)]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert visible(line) == line
        json.loads(line)


def test_colours_change_nothing_but_the_signs_around_the_token(db: Path) -> None:
    def bare(line: str) -> str:
        return re.sub("[«»]", "", ESCAPE.sub("", line)).rstrip()

    for plain, coloured in zip(every_output(db, 80, False), every_output(db, 80, True), strict=True):
        if plain[0].startswith("Feature"):
            assert list(map(bare, plain)) == list(map(bare, coloured))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "on_terminal", "in_pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
    ],
)
def test_who_decides_on_colours(
    environment: dict[str, str], on_terminal: bool, in_pipe: bool, db: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert shows_colours(Terminal()) is on_terminal
    assert shows_colours(io.StringIO()) is in_pipe
    assert main(["context", "1", "--db", str(db)]) == 0
    assert ("\x1b" in capsys.readouterr().out) is in_pipe


def test_text_is_readable_on_every_background() -> None:
    """WCAG's contrast ratio of every pair of colours, with xterm's 256 as they are by default."""

    def luminance(colour: int) -> float:
        steps = (0, 95, 135, 175, 215, 255)
        parts = [steps[(colour - 16) // power % 6] / 255 for power in (36, 6, 1)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for background in heat.SCALE:
        for text in (heat.BLACK, heat.BLUE, heat.RED):
            assert (luminance(background) + 0.05) / (luminance(text) + 0.05) >= 4.5
    levels = [luminance(colour) for colour in heat.SCALE]
    assert levels == sorted(levels, reverse=True)


# ------------------------------------------------------------------------------------------------ lines of tokens

TEXT = st.one_of(st.sampled_from([text[:200] for text in HOSTILE]), st.text(max_size=12))


@given(st.lists(TEXT, min_size=1, max_size=30), st.integers(8, 60), st.data())
def test_lines_of_tokens_fit_and_lose_nothing(texts: list[str], columns: int, data: st.DataObject) -> None:
    spans = [Span(shown(text)) for text in texts]
    lines = broken(spans, columns)
    assert "".join(span.text for line in lines for _, span in line) == "".join(span.text for span in spans)
    assert [number for line in lines for number, _ in line] == sorted(number for line in lines for number, _ in line)
    assert all(width("".join(span.text for _, span in line)) <= columns for line in lines)
    kept = fitted(spans, columns)
    assert width("".join(span.text for span in kept)) <= columns
    assert [span.text for span in kept[:-1]] == [span.text for span in spans[: max(0, len(kept) - 1)]]
    mark = data.draw(st.integers(0, len(texts) - 1))
    first, end = around([span.text for span in spans], mark, columns)
    assert 0 <= first <= mark < end <= len(texts)
    assert end - first == 1 or sum(width(span.text) for span in spans[first:end]) <= columns


def test_bars_are_as_high_as_their_counts() -> None:
    assert sparkline([0, 1, 50, 99, 100]) == f" {BLOCKS[0]}{BLOCKS[4]}{BLOCKS[7]}{BLOCKS[7]}"
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "  "
    assert rendered([Span("a", is_bold=True), Span("b")], colours=True) == "\x1b[1ma\x1b[0mb"


# ------------------------------------------------------------------------------------------------ what SQL says


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("by", "column"), [("attribution", "attribution"), ("efas", "score"), ("z", "z"), ("density", "density")]
)
def test_the_list_is_what_efas_says(db: Path, by: str, column: str, capsys: pytest.CaptureFixture[str]) -> None:
    listed = printed(capsys, "features", "--db", str(db), "--by", by, "--energy", "attention", "--layer", "2")
    expected = table(
        db,
        "SELECT feature, e.score, e.z, e.attribution, f.density, f.n_active FROM features AS f "
        "JOIN efas AS e USING (layer, feature) "
        "WHERE layer = 2 AND energy = 'attention' AND category = 'all' AND gradient = 'decoder'",
    ).sort(pl.col(column).abs(), "feature", descending=[True, False], nulls_last=True)
    assert [row["feature"] for row in listed] == expected["feature"].to_list()
    assert [row["efas"] for row in listed] == expected["score"].to_list()
    assert [row["n_active"] for row in listed] == expected["n_active"].to_list()
    words = ("--by", by, "--rows", "3", "--energy", "attention", "--layer", "2")
    shorter = printed(capsys, "features", "--db", str(db), *words)
    assert shorter == listed[:3]


def test_a_search_finds_what_fires_on_a_text_or_promotes_it(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {(row["layer"], row["feature"]) for row in printed(capsys, "features", "--db", str(db), "--search", "TH")}
    tokens = table(db, "SELECT DISTINCT layer, feature FROM feature_tokens WHERE text ILIKE '%th%'").rows()
    logits = table(
        db, "SELECT DISTINCT layer, feature FROM feature_logits WHERE text ILIKE '%th%' AND direction = 'promoted'"
    ).rows()
    assert {*tokens, *logits} <= found
    assert 0 < len(found) < table(db, "FROM features").height


def test_an_effect_and_its_interval_are_of_one_unit(
    db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nats by edited token both, in a card and in the list."""
    copy = tmp_path / "interval.duckdb"
    shutil.copy(db, copy)
    with Warehouse(copy, writable=True) as warehouse:
        warehouse.sql("UPDATE effect_statistics SET delta_low = -0.5, delta_high = 0.25")
    layer, feature, n = table(
        copy,
        "SELECT layer, feature, n_edited FROM intervention_effects "
        "WHERE direction = 0 AND category = 'all' ORDER BY n_edited DESC",
    ).row(0)
    assert n > 1
    assert main(["feature", f"{layer}:{feature}", "--db", str(copy)]) == 0
    assert "[−0.5000, 0.2500]" in capsys.readouterr().out
    listed = printed(capsys, "features", "--db", str(copy), "--by", "effect", "--layer", str(layer))
    row = next(row for row in listed if row["feature"] == feature)
    assert (row["effect_low"], row["effect_high"]) == (-0.5, 0.25)


def test_a_cards_json_is_what_the_tables_say(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer, feature = table(db, "SELECT layer, feature FROM intervention_effects WHERE direction = 0").row(0)
    card = printed(capsys, "feature", f"{layer}:{feature}", "--db", str(db), "--energy", "hopfield")
    where = f"layer = {layer} AND feature = {feature}"
    for part, query in (
        ("scores", f"FROM efas WHERE {where} AND category = 'all'"),
        ("halves", f"FROM efas_halves WHERE {where} AND category = 'all' AND gradient = 'decoder'"),
        ("tokens", f"FROM feature_tokens WHERE {where}"), ("logits", f"FROM feature_logits WHERE {where}"),
        ("neighbours", f"FROM feature_neighbours WHERE {where}"),
        ("interventions", f"FROM intervention_effects WHERE {where} AND category = 'all'"),
        ("doses", f"FROM dose_response WHERE {where}"),
    ):  # fmt: skip
        expected = table(db, query)
        shared = [name for name in expected.columns if name in card[part][0]]
        assert len(shared) > 4
        told, stored = ([[row[name] for name in shared] for row in rows] for rows in (card[part], expected.to_dicts()))
        assert sorted(told, key=repr) == sorted(stored, key=repr), part
    for example in card["examples"]:
        rows = table(
            db,
            "SELECT t.text, coalesce(a.activation, 0) AS a, a.g_hopfield AS g FROM tokens AS t "
            "LEFT JOIN activations AS a ON a.token_id = t.token_id AND a.layer = $layer AND a.feature = $feature "
            "WHERE t.token_id // 32 = $context ORDER BY t.token_id",
            context=example["context_id"], layer=layer, feature=feature,
        )  # fmt: skip
        assert [example["texts"], example["activations"], example["gradients"]] == [
            rows[c].to_list() for c in rows.columns
        ]


def test_a_context_is_its_tokens_with_their_energies(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "context", "5", "--db", str(db), "--energy", "hopfield", "--layer", "1", "--token", "7")
    rows = table(
        db,
        "SELECT t.text, e.value FROM tokens AS t LEFT JOIN energies AS e ON e.token_id = t.token_id "
        "AND e.energy = 'hopfield' AND e.layer = 1 WHERE t.token_id // 32 = 5 ORDER BY t.token_id",
    )
    assert found["text"]["texts"] == rows["text"].to_list()
    assert found["text"]["values"] == rows["value"].to_list()
    active = table(
        db, "SELECT feature, activation, g_hopfield AS g FROM activations WHERE layer = 1 AND token_id = 5 * 32 + 7"
    )
    features = found["token"]["features"]
    assert {row["feature"]: (row["activation"], row["g"]) for row in features} == {
        feature: (a, g) for feature, a, g in active.rows()
    }
    products = [row["product"] for row in features]
    assert products == pytest.approx([row["activation"] * row["g"] for row in features])
    assert [abs(product) for product in products] == sorted(map(abs, products), reverse=True)


def test_bars_below_a_text_are_its_energies(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["context", "2", "--db", str(db)]) == 0
    lines = capsys.readouterr().out.splitlines()
    bars = "".join(line[6:] for line in lines[lines.index("") + 2 :: 2])
    rows = table(
        db,
        "SELECT t.text, e.value FROM tokens AS t LEFT JOIN energies AS e ON e.token_id = t.token_id "
        "AND e.energy = 'nll' WHERE t.token_id // 32 = 2 ORDER BY t.token_id",
    )
    low, high = table(db, "SELECT q05, q95 FROM layer_energy WHERE energy = 'nll' AND category = 'all'").row(0)
    expected = ""
    for text, value in rows.rows():
        level = " " if value is None else BLOCKS[int(np.clip(np.floor((value - low) / (high - low) * 8), 0, 7))]
        expected += level * width(shown(text))
    assert bars.rstrip() == expected.rstrip()


def test_a_token_is_counted_wherever_it_stands(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = table(
        db,
        "SELECT t.token_id, t.text, c.document_id, e.value FROM tokens AS t JOIN contexts AS c "
        "ON c.context_id = t.token_id // 32 LEFT JOIN energies AS e ON e.token_id = t.token_id AND e.energy = 'nll'",
    )
    spread = tokens.group_by("text").agg(n=pl.col("document_id").n_unique(), all=pl.len()).sort("n", "all", "text")
    text, n_documents, n = spread.row(-1)
    found = printed(capsys, "token", text, "--db", str(db))
    assert (found["places"]["n_tokens"], found["places"]["n_documents"]) == (n, n_documents)
    own = tokens.filter(pl.col("text") == text, pl.col("value").is_not_null())
    (nll,) = [row for row in found["energies"] if row["energy"] == "nll"]
    assert nll["mean"] == pytest.approx(own["value"].cast(pl.Float64).mean())
    sums = own.group_by("document_id").agg(x=pl.col("value").cast(pl.Float64).sum(), n=pl.len())
    residuals = sums["x"].to_numpy() - nll["mean"] * sums["n"].to_numpy()
    documents = len(sums)
    error = np.sqrt((residuals**2).sum() * documents / (documents - 1)) / sums["n"].sum()
    margin = stats.t.ppf(0.975, documents - 1) * error
    assert documents >= 10
    assert (nll["mean_low"], nll["mean_high"]) == pytest.approx((nll["mean"] - margin, nll["mean"] + margin), rel=3e-3)
    firing = table(
        db,
        "SELECT a.layer, a.feature, count(*) AS n FROM activations AS a JOIN tokens AS t USING (run_id, token_id) "
        "WHERE t.text = $text GROUP BY ALL ORDER BY layer, n DESC", text=text,
    )  # fmt: skip
    for layer in (1, 2):
        told = [row["n_active"] for row in found["firing"] if row["layer"] == layer]
        assert told == firing.filter(layer=layer)["n"].head(5).to_list()
    values = [example["values"][example["mark"]] for example in found["examples"]]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (own["value"].max(), own["value"].min())


def test_a_text_may_be_typed_as_it_is_shown(db: Path) -> None:
    with Warehouse(db) as warehouse:
        for typed, text in (("↵", "\n"), ("\\n", "\n"), ("␣the", " the"), (" the", " the"), ("\\u0020the", " the")):
            assert {row["text"] for row in find_token(warehouse, typed).spellings} == {text}


# ------------------------------------------------------------------------------------------------ what cannot be told


def test_a_line_that_cannot_be_told_from_noise_says_so(db: Path) -> None:
    """In the tiny run nothing but the control is told from noise at its own direction."""
    with Warehouse(db) as warehouse:
        layer, feature = warehouse.sql(
            "SELECT layer, feature FROM efas WHERE energy = 'nll' AND gradient = 'decoder' AND category = 'all' "
            "AND q_specific > 0.3 AND q_value > 0.3 AND q_attribution > 0.3 LIMIT 1"
        ).fetchone()
        lines = terminal.card_lines(read_cards(warehouse, layer, [feature], window=terminal.WINDOW)[feature])
    scores, halves, predicted = (line for line in lines if line.startswith("nll "))
    assert scores.endswith("not told from noise")
    assert predicted.endswith("not told from 0")
    assert not halves.endswith("agree")


@pytest.mark.parametrize(
    ("specific", "value", "documents", "word"),
    [
        (None, None, None, "untested"), (0.2, 0.3, 0.1, "noise"), (0.05, 0.05, 0.001, "noise"),
        (0.2, 0.01, 0.001, "undirected"), (0.01, 0.2, 0.2, "here only"), (0.01, 0.2, None, "here only"),
        (0.01, 0.001, 0.01, "holds"),
    ],
)  # fmt: skip
def test_what_the_three_tests_come_to(
    specific: float | None, value: float | None, documents: float | None, word: str
) -> None:
    row = {"q_specific": specific, "q_value": value, "q_documents": documents}
    assert verdicts.of_score(row).word == word
    assert verdicts.of_score(row | {"is_control": True}).word == "control"


# ------------------------------------------------------------------------------------------------ what is not there


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["feature", "1:640"], "The SAE of layer 1 has features 0 to 63, not 640."),
        (["feature", "7:1"], "The current run has no SAE at layer 7 (did you mean 2?); it has layers 1, 2."),
        (["feature", "one"], "LAYER:FEATURE is 'one'; say layer and feature"),
        (["feature", "1:1", "--energy", "heat"], "The current run has no energy heat"),
        (["features", "--by", "beauty"], "Features are not ranked by beauty"),
        (["features", "--layer", "9"], "no SAE at layer 9"),
        (["features", "--class", "wrd"], "No feature of the current run is of class 'wrd'"),
        (["features", "--energy", "heat"], "The current run has no energy heat"),
        (["features", "--rows", "3", "build"], "--rows has no meaning before build"),
        (["context", "99999"], "There is no context 99999 in the current run: it has 0 to "),
        (["context", "0", "--token", "500"], "Context 0 has tokens 0 to "),
        (["context", "0", "--layer", "9"], "The current run has no layer 9; it has 1, 2."),
        (["context", "x"], "Invalid value for 'ID'"),
        (["token", "teh", "--energy", "heat"], "The current run has no energy heat"),
        (["token", "TTHHEE"], "No token of the current run is “TTHHEE”, its spaces counted"),
        (["token", "␣ th e"], "did you mean"),
        (["token", "--id", "9999999"], "Token 9999999 of the vocabulary does not occur"),
        (["token"], "Name one token"),
        (["token", "a", "--id", "3"], "Name one token"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_told_in_a_sentence(
    words: list[str], sentence: str, db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--db", str(db)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("elw: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_a_feature_that_never_fires_is_told(db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "silent.duckdb"
    shutil.copy(db, copy)
    with Warehouse(copy, writable=True) as warehouse:
        warehouse.sql("DELETE FROM feature_activity WHERE layer = 1 AND feature = 3")
    assert main(["feature", "1:3", "--db", str(copy)]) == 2
    assert "Feature 1:3 never fires in the current run" in capsys.readouterr().err


def test_cards_of_an_older_run_are_built(db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "older.duckdb"
    shutil.copy(db, copy)
    with Warehouse(copy, writable=True) as warehouse:
        for name in ("activation_histogram", "activation_intervals", "feature_tokens", "feature_neighbours"):
            warehouse.sql(f"DELETE FROM {name}")
    for words in (["features"], ["feature", "1:6"]):
        assert main([*words, "--db", str(copy)]) == 1
        assert "are not built: run elw features build once." in capsys.readouterr().err
    assert main(["context", "0", "--db", str(copy)]) == 0  # which needs no card
    capsys.readouterr()
    assert main(["features", "build", "--db", str(copy)]) == 0
    n = table(db, "FROM features").height
    assert f"The cards of {n} features of run 1 of {copy} are built" in capsys.readouterr().err
    assert main(["feature", "1:6", "--db", str(copy)]) == 0


def test_a_warehouse_of_before_cards_is_told_the_remedy(
    db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "before.duckdb"
    shutil.copy(db, copy)
    with Warehouse(copy, writable=True) as warehouse:
        warehouse.sql("DELETE FROM schema_migrations WHERE number >= 18")
        warehouse.sql("DROP TABLE activation_histogram")
    for words in (["features"], ["feature", "1:6"]):
        assert main([*words, "--db", str(copy)]) == 1
        assert "is of a version without cards: run elw features build once." in capsys.readouterr().err


def test_json_has_no_number_that_json_lacks() -> None:
    assert json.loads(as_json({"a": [float("nan"), float("inf"), 1.5], "b": "\u202e\U000e0041é"})) == {
        "a": [None, None, 1.5],
        "b": "\u202e\U000e0041é",
    }
