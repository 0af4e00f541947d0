"""The report's numbers: every query in sql/reports/, answered by one warehouse.

A query's leading comment says what it answers; it goes into raw_results.json beside the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from energy_lens.errors import ElwError, UsageError
from energy_lens.reports.examples import Illustrated, read_examples
from energy_lens.sql import FOLDER, statement
from energy_lens.warehouse.database import Warehouse

Row = Mapping[str, Any]

#: One thread adds floats up in one order, so that the same warehouse gives the same digits.
ONE_THREAD = {"threads": "1"}


@dataclass(frozen=True)
class Answer:
    """A named query and its rows."""

    name: str  #: reports/<file>
    question: str  #: the query's leading comment
    columns: list[str]
    types: list[str]  #: DuckDB type names, by column
    rows: list[Row]


def names() -> list[str]:
    """Names of the report's queries, in alphabetical order: reports/alignment_by_layer, …"""
    return [f"reports/{path.stem}" for path in sorted((FOLDER / "reports").glob("*.sql"))]


def question(name: str) -> str:
    """The leading comment of sql/<name>.sql as one line."""
    lines = []
    for line in statement(name).splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return " ".join(lines)


class Gathered(NamedTuple):
    """All that a report shows, read at once."""

    answers: dict[str, Answer]  #: by file name (`alignment_by_layer`)
    examples: list[Illustrated] | None  #: None where the run's cards are not built


def gather(db: Path) -> Gathered:
    """Run every query of the report, and read examples of the features that align most.

    Raises ElwError when the warehouse holds no run, or a run without statistics.
    """
    with Warehouse(db, config=ONE_THREAD) as warehouse:
        answers = answer_all(warehouse)
        return Gathered(answers, read_examples(warehouse, answers["top_features"].rows))


def answer_all(warehouse: Warehouse) -> dict[str, Answer]:
    """Run every query of the report; answers by file name. Raises ElwError as `gather` does."""
    _require_statistics(warehouse)
    answers = {}
    for name in names():
        try:
            result = warehouse.run(name)
            columns, types, rows = result.columns, result.types, result.dicts()
        except UsageError as error:
            reason = str(error).splitlines()[0]
            message = f"{warehouse.path} cannot answer {name} ({reason}): bring it up to date with elw migrate."
            raise ElwError(message) from error
        answers[name.removeprefix("reports/")] = Answer(name, question(name), columns, types, [*rows])
    return answers


def _require_statistics(warehouse: Warehouse) -> None:
    db = warehouse.path
    run = warehouse.sql("SELECT run_id, stats_tokens FROM current_run").fetchone()
    if run is None:
        raise ElwError(f"{db} holds no run: fill it with elw ingest.")
    run_id, stats_tokens = run
    if not stats_tokens:
        raise ElwError(
            f"The statistics of run {run_id} of {db} cover no token yet: "
            "run the same elw ingest again, which goes on and finishes them."
        )
