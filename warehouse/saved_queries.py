"""Queries by name, for `elw sql @name`: the user's own and those that come with the package.

A user's are the .sql files of one folder: ELW_QUERIES, else elw/queries in the user's configuration folder. The
package's are those files of sql/queries/ that begin with `-- @name: what it answers`; the others are the program's own.
A name that both have is the user's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from energy_lens.errors import UsageError, nearest
from energy_lens.sql import FOLDER
from energy_lens.warehouse.output import Rows
from energy_lens.warehouse.parameters import declared, head_comment

#: Names shown where none comes close to the one that was typed.
MOST_NAMED = 12


@dataclass(frozen=True)
class SavedQuery:
    """A query that has a name."""

    name: str
    path: Path
    is_own: bool  #: the user's; else the package's

    @property
    def script(self) -> str:
        """Its SQL. Raises UsageError when the file cannot be read as text."""
        try:
            return self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UsageError(f"{self.path}, the query @{self.name}, cannot be read ({reason}).") from error

    @property
    def answers(self) -> str:
        """What it answers: the first line of its leading comment."""
        lines = [line for line in head_comment(self.script) if line and not line.startswith("$")]
        return lines[0].removeprefix(f"@{self.name}:").strip() if lines else ""


def own_folder() -> Path | None:
    """Where a user's own queries are looked for; None where there is no home. Raises UsageError for a wrong wish."""
    if named := os.environ.get("ELW_QUERIES"):
        folder = Path(os.path.expanduser(named))
        if not os.path.isdir(folder):
            raise UsageError(f"ELW_QUERIES names {folder}, which is no folder: make it, or unset ELW_QUERIES.")
        return folder
    try:
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "elw" / "queries"
    except RuntimeError:
        return None


def saved_queries() -> list[SavedQuery]:
    """Every query that has a name: the user's own by name, then the package's."""
    folder = own_folder()
    try:
        files = sorted(folder.glob("*.sql")) if folder is not None else []
    except OSError:
        files = []
    own = [SavedQuery(path.stem, path, True) for path in files if path.is_file()]
    taken = {query.name for query in own}
    return own + [query for query in _of_package() if query.name not in taken]


def _of_package() -> list[SavedQuery]:
    found = [SavedQuery(path.stem, path, False) for path in sorted(FOLDER.glob("queries/*.sql"))]
    return [query for query in found if query.script.startswith(f"-- @{query.name}: ")]


def find(name: str) -> SavedQuery:
    """The query of that name, with or without its @. Raises UsageError with the nearest names for one that is not."""
    name = name.strip().removeprefix("@")
    queries = {query.name: query for query in saved_queries()}
    if name in queries:
        return queries[name]
    close = nearest(name, queries)
    listed = [f"@{known}" for known in close or list(queries)[:MOST_NAMED]]
    hint = (
        f"did you mean {' or '.join(listed)}?" if close else f"there are {', '.join(listed)}; elw sql --list says more."
    )
    raise UsageError(f"There is no saved query @{name}: {hint}")


def listing(queries: list[SavedQuery]) -> Rows:
    """A row for each query: its name, what it answers, its parameters, and elw or the user's file that it is from."""
    columns = [("query", "varchar"), ("answers", "varchar"), ("parameters", "varchar"), ("from", "varchar")]
    return Rows.of(columns, [_row(query) for query in queries])


def _row(query: SavedQuery) -> tuple[str, str, str, str]:
    file = str(query.path) if query.is_own else "elw"
    try:
        parameters = "; ".join(parameter.described() for parameter in declared(query.script).values())
        return f"@{query.name}", query.answers, parameters, file
    except UsageError as error:  # one broken file must not hide the others
        return f"@{query.name}", str(error), "", file
