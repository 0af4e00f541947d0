"""A statement's result: rows of DuckDB in, Python values, numpy arrays or a polars frame out.

DuckDB's own way to polars needs pyarrow; this one goes through numpy, type by type, so that no value is rounded and an
empty or all-NULL column keeps its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import duckdb

from energy_lens.warehouse.interrupts import interruptibly

if TYPE_CHECKING:
    import polars


class Result:
    """Rows of a query, fetched once by whichever accessor is called."""

    def __init__(self, relation: duckdb.DuckDBPyConnection) -> None:
        self._cursor = relation

    @property
    def columns(self) -> list[str]:
        return [column[0] for column in self._cursor.description or []]

    @property
    def types(self) -> list[str]:
        """DuckDB type names, by column."""
        return [str(column[1]) for column in self._cursor.description or []]

    @property
    def kinds(self) -> list[Any]:
        """DuckDB types, by column, as objects that know their children."""
        return [column[1] for column in self._cursor.description or []]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return interruptibly(self._cursor, self._cursor.fetchall)

    def fetchmany(self, size: int) -> list[tuple[Any, ...]]:
        return interruptibly(self._cursor, lambda: self._cursor.fetchmany(size))

    def fetchone(self) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = interruptibly(self._cursor, self._cursor.fetchone)
        return row

    def value(self) -> Any:
        """The first column of the first row; None when there is no row."""
        rows = self.fetchall()  # all: a result that is not read to its end keeps its connection from other work
        return rows[0][0] if rows else None

    def numpy(self) -> dict[str, Any]:
        """Columns as numpy arrays (masked where there are NULLs)."""
        return interruptibly(self._cursor, self._cursor.fetchnumpy)

    def pl(self) -> polars.DataFrame:
        """A polars frame; needs no pyarrow. A name that repeats becomes name_1, name_2, …

        Numbers, strings, timestamps and lists of them travel as numpy arrays, millions of rows a second. A result
        with any other type (HUGEINT, DECIMAL, structs, …), which numpy would round or lose, travels as Python objects.
        """
        import polars

        names, kinds = _distinct(self.columns), self.kinds
        if all(_travels_as_numpy(kind) for kind in kinds):
            columns = list(self.numpy().values())
            return polars.DataFrame([_series(*c) for c in zip(names, columns, kinds, strict=True)])
        rows = self.fetchall()
        cells = list(zip(*rows, strict=True)) or [()] * len(names)
        types = [_polars_type(kind) for kind in kinds]
        return polars.DataFrame(
            [polars.Series(n, list(c), dtype=t) for n, c, t in zip(names, cells, types, strict=True)]
        )


#: DuckDB types (by `.id`) whose numpy arrays hold the values exactly, and the polars type each becomes.
_NUMPY_TYPES = {
    "boolean": "Boolean", "tinyint": "Int8", "smallint": "Int16", "integer": "Int32", "bigint": "Int64",
    "utinyint": "UInt8", "usmallint": "UInt16", "uinteger": "UInt32", "ubigint": "UInt64",
    "float": "Float32", "double": "Float64", "varchar": "String", "date": "Date",
}  # fmt: skip


#: The same for types that travel as Python objects.
_OBJECT_TYPES = {"hugeint": "Int128", "blob": "Binary", "time": "Time", "null": "Null"}


_TIMESTAMP_UNITS = {"timestamp": "us", "timestamp_s": "us", "timestamp_ms": "us", "timestamp_ns": "ns"}


def _travels_as_numpy(kind: Any) -> bool:
    if kind.id == "list":
        kind = kind.children[0][1]
    return kind.id in _NUMPY_TYPES or kind.id in _TIMESTAMP_UNITS or kind.id == "timestamp with time zone"


def _polars_type(kind: Any) -> Any:
    """The polars type of a DuckDB type, so that an empty or all-NULL column keeps it; None where polars infers."""
    import polars

    if kind.id in _NUMPY_TYPES or kind.id in _OBJECT_TYPES:
        return getattr(polars, (_NUMPY_TYPES | _OBJECT_TYPES)[kind.id])
    if kind.id in _TIMESTAMP_UNITS:
        return polars.Datetime(_TIMESTAMP_UNITS[kind.id])  # type: ignore[arg-type]
    if kind.id == "timestamp with time zone":
        return polars.Datetime("us", "UTC")
    if kind.id == "decimal":
        (_, precision), (_, scale) = kind.children
        return polars.Decimal(precision, scale)
    if kind.id == "list":
        inner = _polars_type(kind.children[0][1])
        return inner and polars.List(inner)
    return None


def _series(name: str, cells: Any, kind: Any) -> polars.Series:
    """A polars column from a numpy array, masked where NULL."""
    import numpy as np
    import polars

    null, values = np.ma.getmaskarray(cells), np.ma.getdata(cells)
    if kind.id != "list":
        return _flat_series(name, values, null, kind)
    # Lists: one flat column of all their elements, gathered again by the number of the row they came from.
    lengths = np.array([0 if missing else len(cell) for cell, missing in zip(values, null, strict=True)], dtype=int)
    filled = [cell for cell, length in zip(values, lengths, strict=True) if length]
    elements: Any = np.ma.concatenate(filled) if filled else np.array([])  # type: ignore[no-untyped-call]
    inner = kind.children[0][1]
    flat = _flat_series(name, np.ma.getdata(elements), np.ma.getmaskarray(elements), inner)
    rows = polars.DataFrame({"row": np.repeat(np.arange(len(lengths)), lengths), name: flat})
    return (
        polars.DataFrame({"row": np.arange(len(lengths)), "empty": ~null & (lengths == 0)})
        .join(rows.group_by("row", maintain_order=True).agg(name), on="row", how="left", maintain_order="left")
        .select(polars.when("empty").then(polars.lit([], dtype=polars.List(flat.dtype))).otherwise(name).alias(name))
        .to_series()
    )


def _flat_series(name: str, values: Any, null: Any, kind: Any) -> polars.Series:
    import polars

    dtype = _polars_type(kind)
    if values.dtype == object:
        cells = [None if missing else value for value, missing in zip(values, null, strict=True)]
        return polars.Series(name, cells, dtype=dtype)
    series = polars.Series(name, values).cast(polars.Datetime("us") if dtype == polars.Date else dtype)
    series = series.cast(dtype)
    return series.set(polars.Series(null), None) if null.any() else series


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, a repeated one with a number behind it."""
    distinct: list[str] = []
    for name in names:
        candidate, number = name, 0
        while candidate in distinct:
            number += 1
            candidate = f"{name}_{number}"
        distinct.append(candidate)
    return distinct
