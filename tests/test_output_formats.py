"""The formats of `elw sql`: what is written reads back as what was asked for, on stdout and in files alike."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.warehouse import output, query, terminal
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.query import Query

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_QUERY = (GOLDEN / "query.sql").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("formats") / "elw.duckdb"
    Warehouse(path, writable=True).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELW_WAREHOUSE", str(path))
        yield path


def printed(capsys: pytest.CaptureFixture[str], form: str, script: str, **parameters: Any) -> str:
    """What a query prints on stdout."""
    capsys.readouterr()
    assert query.run(None, Query(script, parameters, form)) == []
    return capsys.readouterr().out


def written(folder: Path, form: str, script: str, **parameters: Any) -> bytes:
    """What a query writes to a file."""
    target = folder / f"out.{form}"
    assert query.run(None, Query(script, parameters, form, target)) == []
    return target.read_bytes()


# ------------------------------------------------------------------------------------------------ golden files


@pytest.mark.parametrize(
    ("form", "ending"), [("table", "txt"), ("csv", "csv"), ("json", "json"), ("jsonl", "jsonl"), ("markdown", "md")]
)
def test_every_kind_of_value_looks_as_it_did(
    form: str, ending: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    expected = (GOLDEN / f"query.{ending}").read_bytes()
    assert written(tmp_path, form, GOLDEN_QUERY) == expected
    assert printed(capsys, form, GOLDEN_QUERY).encode() == expected


def test_parquet_keeps_types_and_values(tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    # Parquet takes neither the largest HUGEINT nor a negative interval.
    small = f"SELECT * EXCLUDE (span) REPLACE (nullif(huge, {2**127 - 1}) AS huge) FROM ({GOLDEN_QUERY.strip()}) t"
    assert query.run(None, Query(small, output=target)) == []
    with duckdb.connect() as connection:
        back = connection.execute("SELECT * EXCLUDE (nanosecond) FROM read_parquet($file)", {"file": str(target)})
        types = {name: str(kind) for name, kind, *_ in back.description or []}
        rows = back.fetchall()
    with Warehouse() as warehouse:
        direct = warehouse.sql(f"SELECT * EXCLUDE (nanosecond) FROM ({small})")
        assert types == dict(zip(direct.columns, direct.types, strict=True)) | {"huge": "DECIMAL(38,0)"}
        for row, expected in zip(rows, direct.fetchall(), strict=True):
            assert repr(row).replace("Decimal('-1')", "-1") == repr(expected)
    frame = polars.read_parquet(target)
    assert frame["huge"].to_list() == [None, Decimal(-1), None, None]


def test_parquet_refuses_what_it_would_round(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Could not cast"):
        query.run(None, Query(GOLDEN_QUERY, output=tmp_path / "out.parquet"))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ properties

ANY_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
#: The characters that have a meaning somewhere, often.
SHARP_TEXT = st.text(st.sampled_from(list("ab1 ,\"'\n\r\t|\\`*_<>[]~&$#{}%;-=")), max_size=12)
TEXTS = st.none() | ANY_TEXT | SHARP_TEXT
INTEGERS = st.none() | st.integers(-(2**127) + 1, 2**127 - 1)
DOUBLES = st.none() | st.floats()
SINGLES = st.none() | st.floats(width=32)
DECIMALS = st.none() | st.decimals(-(10**9), 10**9, places=4, allow_nan=False)
ROWS = st.lists(st.tuples(TEXTS, INTEGERS, DOUBLES, SINGLES, DECIMALS, st.none() | st.lists(TEXTS, max_size=3)))

#: Numbers travel as text, so that the client's own binding of them is not what is tested.
UNNESTED = """
SELECT
    unnest($texts::VARCHAR[]) AS t, unnest($integers::VARCHAR[]::HUGEINT[]) AS i,
    unnest($doubles::VARCHAR[]::DOUBLE[]) AS d, unnest($singles::VARCHAR[]::FLOAT[]) AS s,
    unnest($decimals::VARCHAR[]::DECIMAL(18, 4)[]) AS n, unnest($lists::VARCHAR[][]) AS l
"""


def columns(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Parameters of UNNESTED."""
    texts, integers, doubles, singles, decimals, lists = (
        (list(c) for c in zip(*rows, strict=True)) if rows else [[]] * 6
    )

    def as_text(values: list[Any]) -> list[str | None]:
        return [None if value is None else str(value) for value in values]

    return {
        "texts": texts, "integers": as_text(integers), "doubles": as_text(doubles), "singles": as_text(singles),
        "decimals": as_text(decimals), "lists": lists,
    }  # fmt: skip


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@settings(max_examples=40)
@given(ROWS)
def test_json_reads_back(rows: list[tuple[Any, ...]]) -> None:
    """Every integer, decimal and float to its last bit; NaN and infinity as null."""
    expected = [
        {"t": t, "i": i, "d": finite(d), "s": finite(s), "n": n and Decimal(n), "l": words}
        for t, i, d, s, n, words in rows
    ]
    whole, lines = io.StringIO(), io.StringIO()
    with Warehouse() as warehouse:
        for form, stream in (("json", whole), ("jsonl", lines)):
            statement = warehouse.statements(UNNESTED)[0]
            rendered = query._rendered(warehouse, statement, columns(rows), form)
            assert rendered
            result = warehouse.sql(rendered[0], **columns(rows))
            output.write(output.Rows(result.columns, rendered[1], query._batches(result)), form, stream)
    found = json.loads(whole.getvalue(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [json.loads(line) for line in lines.getvalue().split("\n")[:-1]] == found
    exact = json.loads(whole.getvalue(), parse_float=Decimal)
    for row, digits, wanted in zip(found, exact, expected, strict=True):
        assert row["s"] is None or np.float32(row["s"]) == np.float32(wanted["s"])
        assert (row["s"] is None) == (wanted["s"] is None)
        assert digits["n"] == wanted["n"]
        assert {key: row[key] for key in "tidl"} == {key: wanted[key] for key in "tidl"}


CSV_ROWS = st.lists(st.tuples(TEXTS.filter(lambda t: t is None or "\0" not in t), INTEGERS, DOUBLES), min_size=1)
CSV_QUERY = """
SELECT unnest($texts::VARCHAR[]) AS "a,b", unnest($integers::VARCHAR[]::HUGEINT[]) AS i,
    unnest($doubles::VARCHAR[]::DOUBLE[]) AS d
"""


@settings(max_examples=40)
@given(CSV_ROWS)
def test_csv_reads_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]) -> None:
    """By Python's reader and by DuckDB's, which tells NULL from an empty string."""
    texts, integers, doubles = (list(column) for column in zip(*rows, strict=True))
    parameters = {
        "texts": texts,
        "integers": [value if value is None else str(value) for value in integers],
        "doubles": [value if value is None else repr(value) for value in doubles],
    }
    target = tmp_path_factory.getbasetemp() / "property.csv"
    query.run(None, Query(CSV_QUERY, parameters, output=target))
    with target.open(newline="", encoding="utf-8") as file:
        header, *found = csv.reader(file, strict=True)
    assert header == ["a,b", "i", "d"]
    for line, (text, integer, number) in zip(found, rows, strict=True):
        assert line[:2] == [text or "", "" if integer is None else str(integer)]
        assert line[2] == "" if number is None else float(line[2]) == number or math.isnan(number)
    with duckdb.connect() as connection:
        back = connection.execute(
            "SELECT * FROM read_csv($file, header = true, delim = ',', quote = '\"', escape = '\"', new_line = '\\n', "
            "strict_mode = true, allow_quoted_nulls = false, auto_detect = false, "
            "columns = {'a': 'VARCHAR', 'i': 'VARCHAR', 'd': 'VARCHAR'})",
            {"file": str(target)},
        ).fetchall()
    assert [row[0] for row in back] == texts


@settings(max_examples=40)
@given(CSV_ROWS)
def test_csv_equals_the_file_that_duckdb_writes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]
) -> None:
    texts = [text for text, _, _ in rows]
    ours, theirs = (tmp_path_factory.getbasetemp() / name for name in ("ours.csv", "theirs.csv"))
    for script in ("SELECT unnest($texts::VARCHAR[]) AS t", "SELECT unnest($texts::VARCHAR[]) AS t, 1 AS one"):
        query.run(None, Query(script, {"texts": texts}, output=ours))
        with Warehouse() as warehouse:
            rendered = query._rendered(warehouse, warehouse.statements(script)[0], {"texts": texts}, "csv")
        assert rendered
        with duckdb.connect() as connection:
            connection.execute(f"COPY ({rendered[0]}) TO '{theirs}' (FORMAT csv, HEADER)", {"texts": texts})
        assert ours.read_bytes() == theirs.read_bytes()


def test_csv_keeps_a_row_whose_only_value_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "csv", "SELECT unnest([1, NULL, 3]) AS a")
    assert list(csv.reader(io.StringIO(text))) == [["a"], ["1"], [""], ["3"]]


def rows_of(*texts: str | None) -> output.Rows:
    return output.Rows.of([("first", "varchar"), ("second", "varchar")], [(text, "end") for text in texts])


def cells(line: str) -> list[str]:
    """Cells of a Markdown table's line, as a renderer splits it: at pipes that no backslash escapes."""
    assert re.fullmatch(r"\| (?:\\.|[^\\|])* \| (?:\\.|[^\\|])* \|", line), line
    return [cell[1:-1] for cell in re.findall(r"(?<=\|)(?:\\.|[^\\|])*(?=\|)", line)]


def unescaped(cell: str) -> str:
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell.replace("<br>", "\n"))


@given(
    st.lists(SHARP_TEXT | st.text(st.characters(whitelist_categories=["L", "N", "P", "S"]), max_size=12), min_size=1)
)
def test_markdown_reads_back(texts: list[str]) -> None:
    stream = io.StringIO()
    texts = [text.replace("\t", " ") for text in texts]  # shown as \t, like other characters that show nothing
    output.write(rows_of(*texts), "markdown", stream)
    head, rule, *lines = stream.getvalue().split("\n")[:-1]
    assert (head, rule) == ("| first | second |", "| --- | --- |")
    for line, text in zip(lines, texts, strict=True):
        first, second = cells(line)
        assert unescaped(first) == re.sub(r"\r\n?", "\n", text)
        assert second == "end"
        bare = re.sub(r"\\.|<br>", "", first)
        assert not re.search(r"[`*~\[\]&$<>|]", bare)


@given(st.lists(TEXTS, max_size=5))
def test_table_is_a_box_whatever_is_in_it(texts: list[str | None]) -> None:
    stream = io.StringIO()
    assert output.write(rows_of(*texts), "table", stream) == []
    lines = stream.getvalue().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(texts) + 4
    assert all(line[0] + line[-1] in ("┌┐", "││", "├┤", "└┘") for line in lines)
    assert len({terminal.width(line) for line in lines}) == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", stream.getvalue())


@given(st.lists(TEXTS, max_size=5), st.integers(20, 60))
def test_table_is_never_wider_than_the_terminal(texts: list[str | None], width: int) -> None:
    for wrap in (False, True):
        stream = io.StringIO()
        output.write(rows_of(*texts), "table", stream, width=width, wrap=wrap)
        assert all(terminal.width(line) <= width for line in stream.getvalue().split("\n"))


# ------------------------------------------------------------------------------------------------ tables


def table(rows: output.Rows, **limits: Any) -> tuple[list[str], list[str]]:
    stream = io.StringIO()
    notes = output.write(rows, "table", stream, **limits)
    return stream.getvalue().splitlines(), notes


def test_numbers_stand_right_and_wide_characters_take_two_columns() -> None:
    lines, _ = table(output.Rows.of([("n", "bigint"), ("text", "varchar")], [(1, "語"), (100, "é"), (None, "a")]))
    assert lines == [
        "┌──────┬──────┐",
        "│    n │ text │",
        "├──────┼──────┤",
        "│    1 │ 語   │",
        "│  100 │ é    │",
        "│ NULL │ a    │",
        "└──────┴──────┘",
    ]


#: What a reader takes for one character each, of several code points, and its columns by Unicode and terminals.
CHARACTERS = {
    "ก็": 1, "น้ำ": 2, "\u1112\u1161\u11ab": 2, "👍🏽": 2, "👩🏽\u200d🚀": 2, "👨\u200d👩\u200d👧": 2, "e\u0301\u0323": 1,
    "🇩🇪": 2, "❤\ufe0f": 2, "語": 2, "ﾊ": 1, "क्षि": 2, "ש\u05b8": 1, "…": 1,
}  # fmt: skip


@pytest.mark.parametrize("text", [*CHARACTERS, "می\u200cخواهم"])
def test_columns_stand_straight_whatever_the_script(text: str) -> None:
    """Joined characters are not escaped, and the text is padded by the terminal's rules."""
    assert terminal.visible(text) == text
    assert terminal.width(text) == CHARACTERS.get(text, 7)
    assert terminal.width(f"{text} and {text}") == 2 * terminal.width(text) + 5
    lines, _ = table(rows_of(text, "plain", text * 3))
    assert {terminal.width(line) for line in lines} == {terminal.width(lines[0])}
    column = max(5, 3 * terminal.width(text))
    assert lines[3] == f"│ {text}{' ' * (column - terminal.width(text))} │ end    │"


@pytest.mark.parametrize(
    "hidden", ["\u200d", "a\u200d", "\u200db", "a\u200cb", "👍\u200d\u200d👍", "x\U000e0041", "\u061c"]
)
def test_what_shows_nothing_is_spelt_out(hidden: str) -> None:
    shown = terminal.visible(hidden)
    assert re.search(r"\\u[0-9a-f]{4}|\\U[0-9a-f]{8}", shown)
    assert terminal.visible(shown) == shown


@given(st.lists(st.sampled_from([*CHARACTERS, "a", " ", "-", "x" * 9]), max_size=12), st.integers(2, 12))
def test_text_is_broken_between_characters(parts: list[str], columns: int) -> None:
    text = "".join(parts)
    lines = terminal.wrapped(text, columns)
    for shown in (terminal.cut(text, columns), *lines):
        assert terminal.width(shown) <= columns
    broken = [character for line in lines for character in terminal._characters(line)]
    whole = list(terminal._characters(text))
    assert [c for c in broken if c != " "] == [c for c in whole if c != " "]


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 17))
def test_numbers_of_a_table_are_as_near_as_their_digits_allow(value: float, digits: int) -> None:
    (shown,) = re.findall(r"│ +(\S+) │", table(output.Rows.of([("x", "double")], [(value,)]), digits=digits)[0][3])
    if digits == 17:
        assert float(shown) == value
        return
    stored = Decimal(repr(value))
    assert abs(Decimal(shown) - stored) <= Decimal(5).scaleb(stored.adjusted() - digits)
    mantissa = shown.partition("e")[0].lstrip("-")
    assert len(mantissa.replace(".", "").strip("0")) <= max(digits, len(mantissa.partition(".")[0]))


def test_a_wide_result_is_readable_and_says_what_it_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Doubles and FLOATs, alone and in lists; integers, decimals, text and other formats keep every digit."""
    query = (
        "SELECT 1/3 AS a, (2/3)::FLOAT AS b, [1/3, 1234567.891::DOUBLE] AS c, 12345678901 AS d, 0.12345678901 AS e, "
        "'0.12345678901' AS f, -1e-9/3 AS g, 99999.97::DOUBLE AS h, 0.5::DOUBLE AS i, 'inf'::DOUBLE AS j"
    )
    assert main(["sql", query]) == 0
    out, err = capsys.readouterr()
    assert re.findall(r"[^│\s]+", out.splitlines()[3]) == [
        "0.333333", "0.666667", "[0.333333,", "1234568]", "12345678901", "0.12345678901", "0.12345678901",
        "-3.33333e-10", "100000", "0.5", "inf",
    ]  # fmt: skip
    assert err == "Numbers are shown to 6 digits: --format csv has them as stored.\n"
    for words in (["--digits", "17"], ["--format", "csv"], ["--format", "json"], ["--format", "markdown"]):
        assert main(["sql", query, *words]) == 0
        out, err = capsys.readouterr()
        assert "0.3333333333333333" in out
        assert "1234567.891" in out
        assert err == ""
    assert main(["sql", query, "--digits", "2"]) == 0
    assert " 0.33 " in capsys.readouterr().out
    assert main(["sql", query, "--digits", "3", "--format", "csv"]) == 2
    assert capsys.readouterr().err == (
        "elw: --digits is for tables, and csv keeps all digits: leave it out, or round in the query.\n"
    )


def test_columns_beyond_a_line_of_them_are_counted() -> None:
    rows = output.Rows.of([(f"column_{i}", "bigint") for i in range(200)], [tuple(range(200))])
    _, notes = table(rows, width=80)
    assert "column_10," in notes[0]
    assert re.search(r" and 1\d\d more\): select fewer", notes[0])
    assert table(rows)[1] == [], "not a terminal: nothing is left out"


def test_rows_beyond_the_limit_are_counted_and_announced(capsys: pytest.CaptureFixture[str]) -> None:
    rows = output.Rows.of([("n", "bigint")], [(i,) for i in range(50)])
    lines, notes = table(rows, shown=40)
    assert len(lines) == 44
    assert notes == ["40 of 50 rows are shown: --rows 0 shows all, --output FILE keeps all."]
    for words, count in ((["--rows", "0"], 3000), (["--rows", "7"], 7), ([], 40)):
        assert main(["sql", "FROM range(3000)", *words]) == 0
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == count + 4
        assert ("3,000 rows are shown" in err) == (count < 3000)


def test_rows_that_are_not_counted_to_the_end_are_said_to_be_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "COUNTED_ROWS", 100)
    rows = output.Rows.of([("n", "bigint")], [(i,) for i in range(5000)])
    assert table(rows, shown=10)[1][0].startswith("10 of more than 110 rows")


def test_file_holds_all_rows_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MEASURED_ROWS", 10)
    text = written(tmp_path, "table", "SELECT repeat('x', range::INTEGER // 10) AS x FROM range(200)").decode()
    assert [line.strip("│ ") for line in text.splitlines()[3:-1]] == ["x" * (i // 10) for i in range(200)]


def test_columns_that_do_not_fit_are_named_and_numbers_are_never_cut() -> None:
    names = [("a_large_number", "bigint"), ("text", "varchar"), ("more", "varchar"), ("last", "varchar")]
    rows = [(123456789012345, "x" * 50, "y" * 50, "z")]
    lines, notes = table(output.Rows.of(names, rows), width=45)
    assert "123456789012345" in lines[3]
    assert lines[3].rstrip().endswith("… │")
    assert len(notes) == 2
    assert "last" in notes[0]
    lines, notes = table(output.Rows.of(names[:2], [row[:2] for row in rows]), width=45)
    assert notes == ["Long values are cut to fit the terminal: --format jsonl shows them whole."]
    assert all(len(line) == 45 for line in lines)


def test_listing_wraps_instead_of_cutting() -> None:
    words = " ".join(f"word{i}" for i in range(20))
    lines, notes = table(
        output.Rows.of([("name", "varchar"), ("comment", "varchar")], [("n", words)]), width=40, wrap=True
    )
    assert notes == []
    assert " ".join(line.split("│")[2].strip() for line in lines[3:-1]) == words


# ------------------------------------------------------------------------------------------------ json


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("now()::TIMESTAMPTZ IS NOT NULL", "true"),
        ("TIMESTAMPTZ '2026-01-01 00:00:00+00' AT TIME ZONE 'UTC'", '"2026-01-01T00:00:00"'),
        ("TIMESTAMP 'infinity'", '"infinity"'),
        ("TIME '10:11:12.5'", '"10:11:12.5"'),
        ("MAP {[1]: 'a'}", '[{"key":[1],"value":"a"}]'),
        ("MAP {DATE '2026-01-02': 1.5::FLOAT}", '{"2026-01-02":1.5}'),
        ("{'a b': {'c': [0.1::FLOAT, 'inf'::FLOAT]}}", '{"a b":{"c":[0.1,null]}}'),
        ("[[1, NULL], NULL, []]", "[[1,null],null,[]]"),
        ("[1, 2]::INTEGER[2]", "[1,2]"),
        ("'{\"a\":\n 1.000000000000000000001}'::JSON", '{"a":  1.000000000000000000001}'),
        ("to_json('nan'::DOUBLE)", '"NaN"'),
        ("union_value(number := 2)", "2"),
        ("'x'::ENUM('x', 'y')", '"x"'),
        ("['\\xAB'::BLOB]", '["ab"]'),
        ("12345678901234567890.123456789::DECIMAL(38, 9)", "12345678901234567890.123456789"),
        ("0.0000000001::DECIMAL(18, 10)", "0.0000000001"),
        ("chr(8232)", '"\u2028"'),
        ("chr(0) || chr(31) || '\"\\'", '"\\u0000\\u001f\\"\\\\"'),
    ],
)
def test_json_of(expression: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "jsonl", f"SELECT {expression} AS a")
    assert text == f'{{"a":{expected}}}\n'
    json.loads(text)


def test_json_of_time_with_time_zone_needs_no_pytz(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "jsonl", "SELECT now() AS a, [now()] AS b, {'c': now()} AS c")
    row = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d(:\d\d)?", row["a"])
    assert row["b"] == [row["a"]] == [row["c"]["c"]]


def test_json_of_no_rows_and_of_repeated_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "json", "SELECT 1 WHERE false") == "[]\n"
    assert printed(capsys, "jsonl", "SELECT 1 WHERE false") == ""
    assert json.loads(printed(capsys, "jsonl", "SELECT 1 AS a, 2 AS a")) == {"a": 1, "a_1": 2}


# ------------------------------------------------------------------------------------------------ files


def test_ending_says_the_format(tmp_path: Path) -> None:
    for ending in output.ENDINGS:
        assert main(["sql", "SELECT 1 AS a", "--output", str(tmp_path / f"out{ending.upper()}")]) == 0
    assert json.loads((tmp_path / "out.JSON").read_text()) == [{"a": 1}]
    assert (tmp_path / "out.NDJSON").read_text() == '{"a":1}\n'
    assert (tmp_path / "out.PARQUET").read_bytes()[:4] == b"PAR1"
    with pytest.raises(UsageError, match="does not say its format"):
        query.run(None, Query("SELECT 1", output=tmp_path / "out.xyz"))
    assert written(tmp_path, "csv", "SELECT 1 AS a") == b"a\n1\n"


def test_parquet_needs_a_file_and_a_query(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--output"):
        query.run(None, Query("SELECT 1", format="parquet"))
    with pytest.raises(UsageError, match="rows of a query"):
        query.run(None, Query("EXPLAIN SELECT 1", output=tmp_path / "out.parquet"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl", "markdown", "parquet"])
def test_failed_query_leaves_the_old_file(form: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("as it was")
    script = "SELECT CASE WHEN i = 99_999 THEN error('late') ELSE i END AS i FROM range(100_000) r(i)"
    with pytest.raises(UsageError, match="late"):
        query.run(None, Query(script, format=form, output=target))
    assert target.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [target]


def test_statement_without_rows_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("as it was")
    for script in ("CREATE TABLE mine AS SELECT 1 AS a", "DROP TABLE mine"):
        assert len(query.run(None, Query(script, output=target, write=True))) == 1
    assert target.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_file_is_whole_when_it_has_its_name(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the last step, nothing has changed; links are followed and the mode stays."""
    target, link = tmp_path / "out", tmp_path / "link"
    target.write_text("as it was")
    target.chmod(0o640)
    link.symlink_to(target)
    seen: list[str] = []
    replace: Callable[..., None] = os.replace

    def watched(source: Path, destination: Path) -> None:
        seen.append(target.read_text())
        replace(source, destination)

    monkeypatch.setattr(os, "replace", watched)
    query.run(None, Query("SELECT 1 AS a", format=form, output=link))
    assert seen == ["as it was"]
    assert link.is_symlink()
    assert target.read_bytes() != b"as it was"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_output_that_cannot_be_written_is_a_sentence(
    db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    before = db.read_bytes()
    for target in (
        tmp_path / "nowhere" / "out.csv",
        tmp_path / "file" / "out.csv",
        tmp_path / ("x" * 300 + ".csv"),
        db,
    ):
        assert main(["sql", "SELECT 1", "--format", "csv", "--output", str(target)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"elw: {target} ")
        assert error.count("\n") == 1
    (tmp_path / "folder.csv").mkdir()
    assert main(["sql", "SELECT 1", "--output", str(tmp_path / "folder.csv")]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert db.read_bytes() == before


def test_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    assert query.run(None, Query("SELECT 1", format="csv", output=Path(os.devnull))) == []
    assert not Path(os.devnull).is_file()
    with pytest.raises(UsageError, match="not a file"):
        query.run(None, Query("SELECT 1", format="parquet", output=Path(os.devnull)))


def test_name_with_quotes_and_spaces(tmp_path: Path) -> None:
    for form in ("csv", "parquet", "json"):
        target = tmp_path / f'it\'s "the" {form} é.out'
        query.run(None, Query("SELECT 1 AS a", format=form, output=target))
        assert target.stat().st_size
