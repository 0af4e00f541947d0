"""Rows in, text or a file out: the formats of `elw sql`.

table     for reading. 40 rows on stdout, cut to the terminal's width; what is cut is announced. NULL is NULL. Floating
          point numbers have 6 digits unless more are asked for; integers and decimals keep all of theirs.
csv       RFC 4180 with a header, lines end in LF. NULL is empty, an empty string is "".
json      an array of objects, one a line. NULL, NaN and infinity are null; integers and decimals keep all digits.
jsonl     the objects alone.
markdown  a GitHub table. What has a meaning there is escaped, a line break is <br>, NULL is empty.
parquet   for data frames; to a file only. HUGEINT becomes DECIMAL(38,0), since Parquet would round it.

Timestamps are ISO 8601, bytes are hexadecimal. DuckDB renders what Python would not keep (a FLOAT's shortest digits,
nanoseconds, intervals, time zones): see `projection`. csv, json and jsonl stream, so that memory does not grow with
the result.
"""

from __future__ import annotations

import codecs
import datetime
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice, zip_longest
from typing import Any, TextIO, cast

from energy_lens.sql import identifier
from energy_lens.warehouse.terminal import cut, visible, wrapped
from energy_lens.warehouse.terminal import width as width_of

FORMATS = ("table", "csv", "json", "jsonl", "markdown", "parquet")

#: What the ending of an output file says about its format.
ENDINGS = {
    ".txt": "table", ".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".md": "markdown",
    ".parquet": "parquet",
}  # fmt: skip

#: Rows of a table that are shown, as in the DuckDB shell.
TABLE_ROWS = 40

#: Rows beyond those shown are counted so far, to say how many there are.
COUNTED_ROWS = 100_000

#: Rows that are looked at to find a table's column widths; a wider value further down sticks out.
MEASURED_ROWS = 10_000

#: Significant digits of floating point numbers in a table: more than an estimate has, few enough to be compared by eye.
DIGITS = 6

#: Digits that say which DOUBLE it is: as stored.
ALL_DIGITS = 17

#: Columns beyond these are counted, not named, when they do not fit.
NAMED_COLUMNS = 30

#: A column of text is cut to no fewer characters than this; columns that do not fit even so are left out.
NARROWEST = 8

_INTEGERS = {"tinyint", "smallint", "integer", "bigint", "hugeint", "bignum"}
_INTEGERS |= {"utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"}
_NUMBERS = _INTEGERS | {"float", "double", "decimal"}
_TIMESTAMPS = {"timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone"}
_MOMENTS = _TIMESTAMPS | {"date", "time", "time_ns", "time with time zone", "interval"}
_UNMARKED = _NUMBERS | _MOMENTS | {"boolean", "uuid"}
_NESTED = {"list", "array", "struct", "map"}


@dataclass(frozen=True)
class Kind:
    """A DuckDB type, as far as the formats need it."""

    id: str  #: DuckDB's name of it in lower case, without parameters
    sql: str = ""  #: how SQL writes it
    children: tuple[tuple[str, Kind], ...] = ()  #: of list, array, map (key, value) and struct (by field name)
    size: int | None = None  #: of an array

    @classmethod
    def of(cls, duckdb_type: Any) -> Kind:
        """The kind of a type as DuckDB's Python client describes it."""
        name, sql = duckdb_type.id, str(duckdb_type)
        if sql == "JSON":
            return cls("json", sql)
        if name not in _NESTED:
            return cls(name, sql)
        children = list(duckdb_type.children)
        size = children.pop()[1] if name == "array" else None
        return cls(name, sql, tuple((field, cls.of(child)) for field, child in children), size)

    def replaced(self, leaf: Callable[[Kind], str]) -> str:
        """SQL of the same type with every innermost type replaced by what `leaf` says."""
        parts = [child.replaced(leaf) for _, child in self.children]
        if self.id in ("list", "array"):
            return f"{parts[0]}[{'' if self.size is None else self.size}]"
        if self.id == "map":
            return f"MAP({', '.join(parts)})"
        if self.id == "struct" and all(name for name, _ in self.children):
            fields = zip(self.children, parts, strict=True)
            return f"STRUCT({', '.join(f'{identifier(name)} {part}' for (name, _), part in fields)})"
        return leaf(self)


@dataclass
class Rows:
    """A result on its way out, read once."""

    names: Sequence[str]
    kinds: Sequence[Kind]
    batches: Iterable[Sequence[Sequence[Any]]]

    @classmethod
    def of(cls, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Any]]) -> Rows:
        """Rows that are at hand; columns are (name, kind id)."""
        return cls([name for name, _ in columns], [Kind(kind) for _, kind in columns], [rows])


def projection(format: str, names: Sequence[str], kinds: Sequence[Kind]) -> str:
    """The select list over columns c0, c1, … that hands a result to a format without loss."""
    columns = [_expression(format, f"c{i}", kind) for i, kind in enumerate(kinds)]
    if format == "csv" and len(columns) == 1:
        # A lone NULL would be an empty line, which readers skip; as an empty string it is "".
        columns = [f"coalesce({columns[0]}, '')"]
    return ", ".join(f"{column} AS {identifier(name)}" for column, name in zip(columns, names, strict=True))


def _expression(format: str, column: str, kind: Kind) -> str:
    if format == "parquet":
        wanted = kind.replaced(lambda leaf: "DECIMAL(38,0)" if leaf.id in ("hugeint", "uhugeint") else leaf.sql)
        return column if wanted == kind.sql else f"CAST({column} AS {wanted})"
    if format in ("json", "jsonl"):
        wanted = kind.replaced(lambda leaf: "VARCHAR" if leaf.id == "float" or leaf.id in _MOMENTS else leaf.sql)
        return column if wanted == kind.sql else f"CAST({column} AS {wanted})"
    if kind.id == "blob":
        return f"lower(hex({column}))"
    if kind.id in _TIMESTAMPS and format != "table":
        return f"replace(CAST({column} AS VARCHAR), ' ', 'T')"
    return column if kind.sql == "VARCHAR" else f"CAST({column} AS VARCHAR)"


def write(
    rows: Rows,
    format: str,
    stream: TextIO,
    shown: int | None = None,
    width: int | None = None,
    wrap: bool = False,
    digits: int = DIGITS,
) -> list[str]:
    """Write rows as text; returns sentences about what was left out. All but the first three concern tables.

    shown: rows to write at most, None for all. digits: significant ones of floating point numbers.
    width: columns of the terminal, None for no limit. wrap: text that does not fit goes on below instead of being cut.
    """
    if format == "table":
        return _write_table(rows, stream, shown, width, wrap, digits)
    writers = {"csv": _write_csv, "json": _write_json, "jsonl": _write_jsonl, "markdown": _write_markdown}
    writers[format](rows, stream)
    return []


# ------------------------------------------------------------------------------------------------ where it goes


def standard_output() -> TextIO:
    """stdout, ready for any character: UTF-8 in a pipe, the terminal's own encoding on a terminal.

    The stream itself stays as it is, for it may be a caller's: this writes to what is below it. Where there is none,
    nothing is written.
    """
    stream = sys.stdout
    if stream is None or getattr(stream, "closed", False):
        return _Nowhere()
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()  # what was written before stands before it
    if stream.isatty():
        return cast(TextIO, codecs.getwriter(stream.encoding)(stream.buffer, "replace"))
    return cast(TextIO, codecs.getwriter("utf-8")(stream.buffer))


class _Nowhere(io.StringIO):
    """Where text goes that nobody is there for."""

    def write(self, text: str, /) -> int:
        return len(text)


# ------------------------------------------------------------------------------------------------ csv

#: What DuckDB quotes in a CSV file, so that a file of ours has the bytes of one of its own.
_CSV_QUOTED = re.compile(r'[",\n\r#]')


def _write_csv(rows: Rows, stream: TextIO) -> None:
    def field(value: Any) -> str:
        if value is None:
            return ""
        text = _text(value)
        return '"' + text.replace('"', '""') + '"' if not text or _CSV_QUOTED.search(text) else text

    stream.write(",".join(map(field, rows.names)) + "\n")
    alone = len(rows.kinds) == 1  # then a NULL comes as an empty string, see `projection`
    for cells in _rendered(rows, [_plain if kind.id in _UNMARKED and not alone else field for kind in rows.kinds]):
        stream.write("\n".join(map(",".join, cells)) + "\n")


def _plain(value: Any) -> str:
    """A value whose text never needs quoting or escaping; empty for NULL."""
    return "" if value is None else _text(value)


def _rendered(rows: Rows, renderers: Sequence[Callable[[Any], str]]) -> Iterator[Iterator[tuple[str, ...]]]:
    """The rows of each batch as text, rendered column by column, which is faster than row by row."""
    for batch in rows.batches:
        if batch:
            columns = zip(*batch, strict=True)
            yield zip(*[map(render, column) for render, column in zip(renderers, columns, strict=True)], strict=True)


# ------------------------------------------------------------------------------------------------ json


def _write_json(rows: Rows, stream: TextIO) -> None:
    opening = "[\n"
    for objects in _objects(rows):
        stream.write(opening + ",\n".join(objects))
        opening = ",\n"
    stream.write("\n]\n" if opening == ",\n" else "[]\n")


def _write_jsonl(rows: Rows, stream: TextIO) -> None:
    for objects in _objects(rows):
        stream.write("\n".join(objects) + "\n")


def _objects(rows: Rows) -> Iterator[Iterator[str]]:
    """The rows of each batch as JSON objects, each on one line."""
    names = [_string(name).replace("%", "%%") for name in rows.names]
    template = "{" + ",".join([f"{name}:%s" for name in names]) + "}"
    for cells in _rendered(rows, [_encoder(kind) for kind in rows.kinds]):
        yield map(template.__mod__, cells)


def _string(value: Any) -> str:
    return json.encoder.encode_basestring(str(value))


def _encoder(kind: Kind) -> Callable[[Any], str]:
    """What makes JSON of a value of this type, None included."""
    encode = _value_encoder(kind)
    return lambda value: "null" if value is None else encode(value)


def _value_encoder(kind: Kind) -> Callable[[Any], str]:
    if kind.id in _INTEGERS:
        return str
    if kind.id in _NUMBERS:
        return _number
    if kind.id in ("varchar", "uuid", "enum", "bit"):
        return _string
    if kind.id in _TIMESTAMPS:
        return lambda value: _string(_text(value).replace(" ", "T", 1))
    if kind.id == "json":
        return _json
    inner = [_encoder(child) for _, child in kind.children]
    if kind.id in ("list", "array"):
        element = inner[0]
        return lambda values: "[" + ",".join([element(value) for value in values]) + "]"
    if kind.id == "struct" and all(name for name, _ in kind.children):
        names = [name for name, _ in kind.children]
        fields = [(name, _string(name) + ":", encode) for name, encode in zip(names, inner, strict=True)]
        return lambda value: "{" + ",".join([key + encode(value[name]) for name, key, encode in fields]) + "}"
    if kind.id == "map":
        return lambda value: _map(value, kind.children[0][1], *inner)
    return _any


def _number(value: Any) -> str:
    """Digits as DuckDB or Python shows them, all of them; null for what JSON has no number for (nan, inf)."""
    text = f"{value:f}" if isinstance(value, Decimal) else str(value)
    return text if text[-1].isdigit() else "null"


def _json(text: str) -> str:
    """A JSON value as it is, on one line; a string when it is none (DuckDB's to_json writes NaN)."""
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return _string(text)
    return re.sub(r"[\r\n]+", " ", text)  # inside a string a line break is escaped, so these are between tokens


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _map(value: Any, key_kind: Kind, key: Callable[[Any], str], content: Callable[[Any], str]) -> str:
    """An object; a list of key and value where keys are lists or structs, which DuckDB hands over as two lists."""
    if key_kind.id in _NESTED:
        pairs = zip(value["key"], value["value"], strict=True)
        return "[" + ",".join([f'{{"key":{key(k)},"value":{content(v)}}}' for k, v in pairs]) + "]"
    return "{" + ",".join([f"{_string(_text(k))}:{content(v)}" for k, v in value.items()]) + "}"


def _any(value: Any) -> str:
    """JSON of a Python value whose type DuckDB does not tell: members of unions, variants."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        return _number(value)
    if isinstance(value, dict):
        return "{" + ",".join([f"{_string(_text(k))}:{_any(v)}" for k, v in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_any, value)) + "]"
    return _string(_text(value))


def _text(value: Any) -> str:
    """A value as text; strings, which is what DuckDB mostly hands over here, as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (dict, list, tuple)):
        return _any(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


# ------------------------------------------------------------------------------------------------ markdown

#: Characters that GitHub's Markdown gives a meaning to in a cell. An underscore inside a word has none.
_MARKED = re.compile(r"[\\`*<>\[\]~|&$]|(?<![^\W_])_|_(?![^\W_])")


def _write_markdown(rows: Rows, stream: TextIO) -> None:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |\n"

    def cell(value: Any) -> str:
        if value is None:
            return ""
        lines = re.split(r"\r\n|\r|\n", _text(value))
        return "<br>".join([visible(_MARKED.sub(r"\\\g<0>", line)) for line in lines])

    stream.write(line(map(cell, rows.names)))
    stream.write(line("---:" if kind.id in _NUMBERS else "---" for kind in rows.kinds))
    for cells in _rendered(rows, [_plain if kind.id in _UNMARKED else cell for kind in rows.kinds]):
        stream.write("".join(map(line, cells)))


# ------------------------------------------------------------------------------------------------ table


def _write_table(
    rows: Rows, stream: TextIO, shown: int | None, width: int | None, wrap: bool, digits: int
) -> list[str]:
    iterator = chain.from_iterable(rows.batches)
    cells = _Cells(rows.kinds, digits)
    first: list[list[str]] = []
    for row in iterator:
        first.append(cells.of(row))
        if len(first) == (MEASURED_ROWS if shown is None else shown):
            break
    names = [visible(name) for name in rows.names]
    numeric = [kind.id in _NUMBERS for kind in rows.kinds]
    widths = [max(map(width_of, column)) for column in zip(names, *first, strict=True)]
    fitted, narrowed = _fit(widths, numeric, width)
    left_out = names[len(fitted) :]

    def line(cells: Sequence[str]) -> str:
        padded = [_pad(cell, w, right) for cell, w, right in zip(cells, fitted, numeric, strict=False)]
        return "│ " + " │ ".join(padded + ["…"] * bool(left_out)) + " │\n"

    def lines(cells: Sequence[str]) -> str:
        if not narrowed:
            return line(cells)
        if not wrap:
            return line([cut(cell, w) for cell, w in zip(cells, fitted, strict=False)])
        parts = [wrapped(cell, w) for cell, w in zip(cells, fitted, strict=False)]
        return "".join(map(line, zip_longest(*parts, fillvalue="")))

    rule = ["─" * (w + 2) for w in fitted] + ["───"] * bool(left_out)
    stream.write("┌" + "┬".join(rule) + "┐\n" + lines(names) + "├" + "┼".join(rule) + "┤\n")
    stream.write("".join([lines(row) for row in first]))
    if shown is None:
        for row in iterator:
            stream.write(lines(cells.of(row)))
    stream.write("└" + "┴".join(rule) + "┘\n")
    stream.flush()  # before what is said about it
    notes = []
    more = sum(1 for _ in islice(iterator, COUNTED_ROWS))
    if more:
        count = f"{len(first) + more:,}" if more < COUNTED_ROWS else f"more than {len(first) + more:,}"
        notes.append(f"{len(first)} of {count} rows are shown: --rows 0 shows all, --output FILE keeps all.")
    if left_out:
        count = f"{len(left_out)} column{' does' if len(left_out) == 1 else 's do'}"
        named = ", ".join(left_out[:NAMED_COLUMNS])
        named += f" and {len(left_out) - NAMED_COLUMNS} more" if len(left_out) > NAMED_COLUMNS else ""
        notes.append(f"{count} not fit ({named}): select fewer, or --format jsonl.")
    if narrowed and not wrap:
        notes.append("Long values are cut to fit the terminal: --format jsonl shows them whole.")
    if cells.shortened:
        notes.append(f"Numbers are shown to {digits} digits: --format csv has them as stored.")
    return notes


class _Cells:
    """Values of a table as text on one line."""

    def __init__(self, kinds: Sequence[Kind], digits: int) -> None:
        self.digits = digits
        self.shortened = False  #: whether any number lost digits
        self._floating = [_is_floating(kind) and digits < ALL_DIGITS for kind in kinds]

    def of(self, row: Sequence[Any]) -> list[str]:
        return [self._cell(value, floating) for value, floating in zip(row, self._floating, strict=True)]

    def _cell(self, value: Any, floating: bool) -> str:
        if value is None:
            return "NULL"
        text = _text(value)
        if not floating:
            return visible(text)
        short = _FLOATING.sub(lambda number: to_digits(number[0], self.digits), text)
        self.shortened = self.shortened or short != text
        return short


#: A floating point number as DuckDB and Python write it.
_FLOATING = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?")


def _is_floating(kind: Kind) -> bool:
    """Whether all that stands in a value of this type is floating point numbers."""
    return kind.id in ("float", "double") or (kind.id in ("list", "array") and _is_floating(kind.children[0][1]))


def to_digits(number: str, digits: int) -> str:
    """A positive number with at most so many significant digits, as near as can be; digits before the point stay."""
    if len(number.partition("e")[0].replace(".", "").strip("0")) <= digits:
        return number
    value = float(number)
    if "e" not in number and value >= 10 ** (digits - 1):
        return f"{value:.0f}"
    short = f"{value:.{digits}g}"
    return f"{short}.0" if len(short) < digits and short.isdigit() else short


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - width_of(text))
    return space + text if right else text + space


def _fit(widths: list[int], numeric: list[bool], width: int | None) -> tuple[list[int], bool]:
    """Widths of the columns that fit, from the left, and whether any is narrower than its content.

    Numbers are never cut, since a cut number is a wrong one.
    """

    def total(some: list[int]) -> int:
        return sum(some) + 3 * len(some) + 1

    if width is None or total(widths) <= width:
        return widths, False
    least = [w if number else min(w, NARROWEST) for w, number in zip(widths, numeric, strict=True)]
    kept = len(widths)
    room = width
    while kept > 1 and total(least[:kept]) > room:
        kept -= 1
        room = width - 4  # for the column of dots
    cap = max(widths)
    fitted = widths[:kept]
    while cap > NARROWEST and total(fitted) > room:
        cap -= 1
        fitted = [max(low, min(w, cap)) for low, w in zip(least, widths[:kept], strict=False)]
    return fitted, fitted != widths[:kept]
