"""`elw check`: a warehouse in; for each promise of its tables, the rows that break it, out.

A promise is a query in sql/checks/: its first line says it in a sentence, and its rows are those that break it, of all
runs of the file. Nothing is written, and an older file is checked for what it can answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from energy_lens.errors import ElwError, UsageError
from energy_lens.sql import FOLDER, statement
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.output import Rows

#: How DuckDB begins when a query names a table, view or column that a file has not.
_LACKING = ("Catalog Error", "Binder Error")

_WRAPPED = "SELECT count(*), min(broken) FROM (\n{query}\n) AS broken"


@dataclass(frozen=True)
class CheckOutcome:
    """What became of one check."""

    check: str  #: sql/checks/<check>.sql
    promise: str  #: in a sentence
    n_broken: int | None  #: rows that break it; None: an older file lacks what the query asks for
    first_broken: str | None  #: the first of them, in the order of its columns, as text


def check_names() -> list[str]:
    """Names of the checks, in alphabetical order."""
    return sorted(path.stem for path in (FOLDER / "checks").glob("*.sql"))


def promise(check: str) -> str:
    """What a check asks, from the first line of its file."""
    return statement(f"checks/{check}").partition("\n")[0].removeprefix("--").strip()


def run_checks(warehouse: Warehouse) -> list[CheckOutcome]:
    """Every check on an open warehouse.

    Raises ElwError when a file of this version lacks a table, view or column of it.
    """
    return [run_check(warehouse, check) for check in check_names()]


def run_check(warehouse: Warehouse, check: str) -> CheckOutcome:
    """One check, by its name. Raises ElwError as run_checks does."""
    try:
        row = warehouse.sql(_WRAPPED.format(query=statement(f"checks/{check}"))).fetchone()
    except UsageError as error:
        reason = str(error).splitlines()[0]
        if not reason.startswith(_LACKING):
            raise
        if not warehouse.behind:
            sentence = f"{warehouse.path} lacks a part of its schema ({reason}): restore it from a copy or ingest anew."
            raise ElwError(sentence) from error
        return CheckOutcome(check, promise(check), None, None)
    assert row is not None
    n_broken, first = row
    shown = ", ".join(f"{column}={value}" for column, value in first.items()) if first else None
    return CheckOutcome(check, promise(check), n_broken, shown)


def outcome_rows(outcomes: list[CheckOutcome]) -> Rows:
    """A row for each check: its name, promise, broken rows and the first of them."""
    columns = [("check", "varchar"), ("promise", "varchar"), ("broken", "bigint"), ("first_broken", "varchar")]
    return Rows.of(columns, [(o.check, o.promise, o.n_broken, o.first_broken) for o in outcomes])
