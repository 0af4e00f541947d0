"""A statement's result: rows of DuckDB in, Python values, numpy arrays or a polars frame out.

A result holds its own rows: those that are not read yet stay with DuckDB until the connection is wanted for something
else, and are taken over then. DuckDB's own way to polars needs pyarrow; this one goes through numpy, type by type, so
that no value is rounded and an empty or all-NULL column keeps its type.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from energy_lens.errors import ElwError, UsageError
from energy_lens.warehouse.interrupts import interruptibly

if TYPE_CHECKING:
    import polars

T = TypeVar("T")
Row = tuple[Any, ...]


class Result:
    """Rows of a query, read from DuckDB when they are asked for.

    `fetchone`, `fetchmany` and `fetchall` each go on behind what was fetched. `value`, `numpy` and `pl` are of all rows
    that are not fetched; they fetch none, and may be called again and in any order.
    """

    def __init__(
        self, cursor: duckdb.DuckDBPyConnection, turn: contextlib.AbstractContextManager[Any], owner: object = None
    ) -> None:
        """cursor: has run the statement, and runs no other before `hold` was called.

        turn: the lock of the cursor, which takes one call at a time. owner: closes the cursor when it is forgotten.
        """
        self._owner = owner
        description = cursor.description or []
        self.columns: list[str] = [column[0] for column in description]
        #: DuckDB types, by column, as objects that know their children.
        self.kinds: list[Any] = [column[1] for column in description]
        self._turn = turn
        self._cursor: duckdb.DuckDBPyConnection | None = cursor  # None: what is left is held here, or lost
        self._begun = False  # some rows were fetched while the others were still DuckDB's
        self._rows: Sequence[Row] | None = None  # those that are held
        self._n_fetched = 0  # of those that are held
        self._arrays: dict[str, Any] | None = None  # all rows as numpy has them
        self._lost: ElwError | None = None  # why there are no rows any more

    @property
    def types(self) -> list[str]:
        """DuckDB type names, by column."""
        return [str(kind) for kind in self.kinds]

    def fetchall(self) -> list[Row]:
        with self._turn:
            if self._cursor is not None:
                rows: list[Row] = self._taken(self._cursor.fetchall)
                self._rows = ()  # whoever asked has them
                return rows
        rows = self._left()
        self._n_fetched += len(rows)
        return rows

    def dicts(self) -> list[dict[str, Any]]:
        """The rows of `fetchall` by column name; of equal names the last."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.fetchall()]

    def fetchmany(self, size: int) -> list[Row]:
        with self._turn:
            if (cursor := self._cursor) is not None:
                self._begun = True
                return interruptibly(cursor, lambda: cursor.fetchmany(size))
        rows = self._left(size)
        self._n_fetched += len(rows)
        return rows

    def fetchone(self) -> Row | None:
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def value(self) -> Any:
        """The first column of the first row; None when there is no row."""
        rows = self._left(1)
        return rows[0][0] if rows else None

    def numpy(self) -> dict[str, Any]:
        """Columns as numpy arrays (masked where there are NULLs)."""
        with self._turn:
            if self._cursor is not None and self._is_exact_in_numpy and not self._begun:
                self._arrays = self._taken(self._cursor.fetchnumpy)
        if self._arrays is not None and not self._n_fetched:
            return dict(self._arrays)
        columns = zip(_distinct(self.columns), self._cells(), self.kinds, strict=True)
        return {name: _array(cells, kind) for name, cells, kind in columns}

    def pl(self) -> polars.DataFrame:
        """A polars frame; needs no pyarrow. A name that repeats becomes name_1, name_2, …

        Numbers, strings, timestamps and lists of them travel as numpy arrays, millions of rows a second. A result
        with any other type (HUGEINT, DECIMAL, structs, …), which numpy would round or lose, travels as Python objects.
        Raises UsageError for a date or time that Python does not have, such as infinity or the year 10000.
        """
        import polars

        names, kinds = _distinct(self.columns), self.kinds
        has_arrays = self._arrays is not None and not self._n_fetched
        if has_arrays or (self._is_exact_in_numpy and not self._begun and self._rows is None):
            arrays = self.numpy().values()
            return polars.DataFrame([_series(*c) for c in zip(names, arrays, kinds, strict=True)])
        return polars.DataFrame([_series_of_objects(*c) for c in zip(names, self._cells(), kinds, strict=True)])

    def hold(self) -> None:
        """Take over what is left, since DuckDB is to run another statement.

        An error of the query waits for whoever asks for the rows.
        """
        with self._turn, contextlib.suppress(ElwError):
            if self._cursor is None:
                return
            # As Python objects, nanoseconds would become microseconds, and infinity the end of the year 9999.
            if self._is_exact_in_numpy and not self._begun and re.search("DATE|TIME", str(self.types)):
                self.numpy()
            else:
                self._rows = self._taken(self._cursor.fetchall)

    def lose(self) -> None:
        """Give up what is not held, since the connection closes."""
        if self._cursor is not None:
            self._cursor = None
            self._lost = UsageError("The warehouse was closed before its rows were fetched: fetch them within it.")

    @property
    def _is_exact_in_numpy(self) -> bool:
        return all(_travels_as_numpy(kind) for kind in self.kinds)

    def _taken(self, fetch: Callable[[], T]) -> T:
        """All that DuckDB still has of the rows; whatever comes of it, nothing is left there."""
        assert self._cursor is not None
        cursor, self._cursor = self._cursor, None
        self._lost = ElwError("The query was interrupted: run it again.")
        try:
            taken = interruptibly(cursor, fetch)
        except ElwError as error:
            error = _explained(error)
            self._lost = type(error)(str(error))  # another one: this one's frames would keep the connection open
            raise error from error.__cause__
        self._lost = None
        return taken

    def _left(self, size: int | None = None) -> list[Row]:
        """The next of the rows that are not fetched, at most so many; DuckDB has none of them any more."""
        self.hold()
        if self._lost is not None:
            raise self._lost
        if self._rows is None:
            self._rows = self.pl().rows()
        return list(self._rows[self._n_fetched :][:size])

    def _cells(self) -> list[tuple[Any, ...]]:
        """The columns of the rows that are not fetched."""
        return list(zip(*self._left(), strict=True)) or [()] * len(self.columns)


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


def _explained(error: ElwError) -> ElwError:
    """An error of reading rows, with the remedy where it is a date that numpy does not have."""
    if "to microseconds" in str(error):
        return UsageError(_BEYOND.format(what="The result"))
    return error


#: Python's datetime and polars know the years 1 to 9999, and no 24:00:00.
_BEYOND = "{what} holds a date or time that Python does not have: cast it to VARCHAR in the query."


def _array(cells: Sequence[Any], kind: Any) -> Any:
    """A numpy array of Python values, masked where there is None."""
    import numpy as np

    null = np.array([cell is None for cell in cells], dtype=bool)
    name = _NUMPY_TYPES.get(kind.id, "")
    if name in ("", "String", "Date"):
        unit = _TIMESTAMP_UNITS.get(kind.id, "us" if kind.id == "date" else None)
        dtype: Any = f"datetime64[{unit}]" if unit else float if kind.id in ("hugeint", "decimal") else object
    else:
        dtype = np.dtype(name.lower().replace("boolean", "bool"))
    values = np.empty(len(cells), dtype=dtype)
    for place, cell in enumerate(cells):
        if cell is not None:
            values[place] = cell
    return np.ma.MaskedArray(values, null) if null.any() else values


def _series_of_objects(name: str, cells: Sequence[Any], kind: Any) -> polars.Series:
    """A polars column from Python values."""
    import polars

    try:
        return polars.Series(name, list(cells), dtype=_polars_type(kind))
    except (TypeError, polars.exceptions.PolarsError) as error:
        if any(word in str(kind).lower() for word in ("date", "time")):
            raise UsageError(_BEYOND.format(what=f"Column {name}")) from error
        raise


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
    if kind.id != "timestamp_ns" and values.dtype.kind == "M":
        import numpy as np

        seconds = values[~null].astype("datetime64[s]")
        first, last = np.datetime64("0001-01-01T00:00:00"), np.datetime64("9999-12-31T23:59:59")
        if len(seconds) and (seconds.min() < first or seconds.max() > last):  # polars aborts where it is to show it
            raise UsageError(_BEYOND.format(what=f"Column {name}"))
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
