"""An open file in, this version's schema in it: numbered migrations once each, views whenever their text changed.

sql/migrations/NNNN_name.sql, each in its own transaction, is recorded in `schema_migrations`. sql/views/**/*.sql are
applied in the order of their paths (staging, intermediate, marts) when their common hash differs from the recorded
one. A line `-- columns as in: a, b` in a view's file gives its columns the comments that columns of the same name have
in a or b. Only writers do any of this; a reader of an older file queries it as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import duckdb

from energy_lens.errors import WarehouseError
from energy_lens.sql import FOLDER, statement

_COLUMNS_AS_IN = re.compile(r"^-- columns as in: (.+)$", re.MULTILINE)

_BOOKKEEPING = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL
);
CREATE TABLE IF NOT EXISTS schema_views (
    sha256 VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL
);
COMMENT ON TABLE schema_migrations IS 'Migrations that made this file''s tables.';
COMMENT ON COLUMN schema_migrations.number IS 'Number in the file name.';
COMMENT ON COLUMN schema_migrations.name IS 'File name without the ending.';
COMMENT ON COLUMN schema_migrations.applied_at IS 'UTC.';
COMMENT ON TABLE schema_views IS 'Which version of the views this file holds.';
COMMENT ON COLUMN schema_views.sha256 IS 'sha256 of all view definitions.';
COMMENT ON COLUMN schema_views.applied_at IS 'UTC.';
"""


def migration_files() -> list[tuple[int, Path]]:
    """(number, file) of every migration, in order."""
    return sorted((int(path.name[:4]), path) for path in FOLDER.glob("migrations/[0-9]*.sql"))


def view_files() -> list[Path]:
    """View definitions in the order in which they are applied."""
    return sorted(FOLDER.glob("views/*/*.sql"))


def migrate(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Bring a file to this version's schema; does nothing when it is there.

    Raises WarehouseError when the file is not a warehouse or belongs to a newer version.
    """
    tables = _table_names(connection)
    if tables and "schema_migrations" not in tables:
        raise WarehouseError(f"{path} is a DuckDB file but not a warehouse: name another file with --db.")
    if not tables:
        with _transaction(connection):
            connection.execute(_BOOKKEEPING)
    applied = _applied(connection)
    _refuse_newer(applied, path)
    for number, file in migration_files():
        if number not in applied:
            with _transaction(connection):
                connection.execute(file.read_text(encoding="utf-8"))
                connection.execute(
                    "INSERT INTO schema_migrations VALUES (?, ?, now() AT TIME ZONE 'UTC')", [number, file.stem]
                )
    if connection.execute("SELECT sha256 FROM schema_views").fetchall() != [(_digest(),)]:
        _make_views(connection, path)


def remake_views(connection: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    """Make all views and macros anew; returns the names of those that were gone or not as this version has them.

    Raises WarehouseError when a table has the name of one.
    """
    before = _view_words(connection)
    _make_views(connection, path)
    return sorted(name for name, words in _view_words(connection).items() if before.get(name) != words)


def _make_views(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    definitions = _view_definitions()
    try:
        with _transaction(connection):
            connection.execute("\n".join(definitions.values()))
            _copy_comments(connection, definitions)
            connection.execute("DELETE FROM schema_views")
            connection.execute("INSERT INTO schema_views VALUES (?, now() AT TIME ZONE 'UTC')", [_digest()])
    except duckdb.CatalogException as error:
        if taken := re.search(r"[Ee]xisting object \"?(\w+)\"? is of type (\w+)", str(error)):
            raise WarehouseError(
                f"{path} has a {taken[2].lower()} named {taken[1]}, where a view of elw belongs: rename or drop it."
            ) from error
        raise


def _view_definitions() -> dict[str, str]:
    """{name: SQL} of views and macros, in the order in which they are applied."""
    return {file.stem: file.read_text(encoding="utf-8") for file in view_files()}


def _digest() -> str:
    return hashlib.sha256("\n".join(_view_definitions().values()).encode()).hexdigest()


def _view_words(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """{name: the words that define it} of elw's views and macros as the file has them.

    Sorted, since DuckDB gives names in SELECT * EXCLUDE (…) in another order each time that it reads a file; and 1e-6
    comes back as 1e-06.
    """
    rows = connection.execute(statement("queries/definitions")).fetchall()
    own = _view_definitions()
    words: dict[str, list[str]] = {name: [] for name, _ in rows if name in own}
    for name, text in rows:  # of a macro, one for each number of its parameters
        if name in own:
            words[name] = sorted([*words[name], *re.findall(r"\w+", re.sub(r"(\de[+-]?)0+(?=\d)", r"\1", text))])
    return words


@cache
def own_tables() -> frozenset[str]:
    """Names of the tables that migrations make; a file may hold a user's own beside them."""
    text = "\n".join(file.read_text(encoding="utf-8") for _, file in migration_files())
    return frozenset(re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)", text, re.MULTILINE))


def check(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Whether a file that is only read lacks migrations of this version (`elw migrate` adds them).

    Raises WarehouseError when it is not a warehouse or belongs to a newer version.
    """
    if "schema_migrations" not in _table_names(connection):
        raise WarehouseError(f"{path} is a DuckDB file but not a warehouse: name another file with --db.")
    applied = _applied(connection)
    _refuse_newer(applied, path)
    return any(number not in applied for number, _ in migration_files())


def _copy_comments(connection: duckdb.DuckDBPyConnection, definitions: Mapping[str, str]) -> None:
    """Give each uncommented column of a view the comment of the same column of the first source that has one."""
    # All at once: DuckDB binds every view of the file each time that it is asked for columns.
    query = "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal"
    comments: dict[str, dict[str, str | None]] = {}
    for relation, column, comment in connection.execute(query).fetchall():
        comments.setdefault(relation, {})[column] = comment
    statements = []
    for view, text in definitions.items():
        if match := _COLUMNS_AS_IN.search(text):
            sources = [comments[source] for source in match[1].split(", ")]
            for column, comment in comments[view].items():
                found = next((source[column] for source in sources if source.get(column)), None)
                if not comment and found:
                    quoted = found.replace("'", "''")
                    statements.append(f"COMMENT ON COLUMN {view}.\"{column}\" IS '{quoted}'")
                    comments[view][column] = found
    connection.execute(";\n".join(statements))


@contextlib.contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.execute("BEGIN TRANSACTION")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # Ctrl-C may come after the commit itself
            connection.execute("ROLLBACK")
        raise


def _table_names(connection: duckdb.DuckDBPyConnection) -> set[str]:
    rows = connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()
    return {name for (name,) in rows}


def _applied(connection: duckdb.DuckDBPyConnection) -> set[int]:
    return {number for (number,) in connection.execute("SELECT number FROM schema_migrations").fetchall()}


def _refuse_newer(applied: set[int], path: Path) -> None:
    known = {number for number, _ in migration_files()}
    if unknown := applied - known:
        raise WarehouseError(
            f"{path} was written by a newer version of elw (schema {max(unknown)}, this one knows {max(known)}): "
            "upgrade energy-lens."
        )
