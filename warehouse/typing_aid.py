"""SQL as it is being typed in: whether it is whole, and what could stand at its end out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import duckdb

from energy_lens.warehouse.database import Warehouse

#: Words behind which a table, a view or a table macro stands.
_BEFORE_RELATIONS = ("FROM", "JOIN", "INTO", "UPDATE", "DESCRIBE", "SUMMARIZE", "TABLE", "VIEW")

#: Words that may stand behind a table's name, so that they are not taken for its alias.
_NO_ALIASES = (
    "WHERE",
    "JOIN",
    "ON",
    "USING",
    "GROUP",
    "ORDER",
    "LIMIT",
    "LEFT",
    "RIGHT",
    "INNER",
    "CROSS",
    "AS",
    "HAVING",
)


@dataclass(frozen=True)
class Candidate:
    """Something that may stand where the cursor is."""

    text: str
    kind: str  #: table, view, macro, column or keyword


@dataclass
class Names:
    """What a query on a warehouse can name."""

    relations: dict[str, str] = field(default_factory=dict)  #: kind of each table, view and macro
    columns: dict[str, list[str]] = field(default_factory=dict)  #: of each table and view
    keywords: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, warehouse: Warehouse) -> Names:
        names = cls()
        for kind, name, owner in warehouse.run("queries/names").fetchall():
            if kind == "column":
                names.columns.setdefault(owner, []).append(name)
            elif kind == "keyword":
                names.keywords.append(name)
            else:
                names.relations[name] = kind
        return names

    def candidates(self, before: str, whole: str | None = None) -> list[Candidate]:
        """What may stand at the end of `before`, in the order in which it is likely.

        whole: the query, with what stands behind the cursor: its FROM says whose columns are meant.
        """
        if _is_inside_text(before):
            return []
        word = re.search(r"\w*$", before)
        assert word is not None
        typed, head = word[0], before[: word.start()]
        if head.endswith("."):
            owner = re.search(r"(\w+)\.$", head)
            return _beginning(typed, self._columns_of(owner[1], whole or before), "column") if owner else []
        last = re.search(r"(\w+)\s+$", head)
        relations = [Candidate(name, kind) for name, kind in self.relations.items() if _begins(name, typed)]
        if last and last[1].upper() in _BEFORE_RELATIONS:
            return relations
        if not typed:
            return []
        return [
            *_beginning(typed, self._named_columns(whole or before), "column"),
            *relations,
            *_beginning(typed, (_cased(word, typed) for word in self.keywords), "keyword"),
        ]

    def _columns_of(self, name: str, query: str) -> list[str]:
        """Columns of a table or view, by its name or by its alias in the query."""
        by_name = {relation.lower(): relation for relation in self.columns}
        if name.lower() in by_name:
            return self.columns[by_name[name.lower()]]
        for relation, alias in re.findall(r"(?=\b(\w+)\s+(?:AS\s+)?(\w+))", query, re.IGNORECASE):
            if alias.lower() == name.lower() and relation.lower() in by_name and alias.upper() not in _NO_ALIASES:
                return self.columns[by_name[relation.lower()]]
        return []

    def _named_columns(self, query: str) -> list[str]:
        """Columns of the tables and views that the query names; of all where it names none yet."""
        words = {word.lower() for word in re.findall(r"\w+", query)}
        named = [columns for relation, columns in self.columns.items() if relation.lower() in words]
        return list(dict.fromkeys(column for columns in named or self.columns.values() for column in columns))


def is_whole(text: str) -> bool:
    """Whether a text ends with the semicolon of a statement, and not with one in a string, a name or a comment."""
    pieces = _tokens(text)
    while pieces and pieces[-1][1] == "comment":
        if pieces[-1][0].startswith("/*") and not pieces[-1][0].rstrip().endswith("*/"):
            return False  # it goes on
        pieces.pop()
    return bool(pieces) and pieces[-1] == (";", "operator")


def _tokens(text: str) -> list[tuple[str, str]]:
    """(text without space around it, kind) of a query's tokens, as DuckDB cuts it."""
    data = text.encode("utf-8", "replace")  # tokens are counted in bytes
    tokens = duckdb.tokenize(data.decode())
    if not tokens:
        return []
    ends = [start for start, _ in tokens[1:]] + [len(data)]
    return [
        (data[start:end].decode("utf-8", "replace").strip(), kind.name)
        for (start, kind), end in zip(tokens, ends, strict=True)
    ]


def _is_inside_text(before: str) -> bool:
    """Whether what is typed next belongs to a string or a comment."""
    tokens = _tokens(before)
    if not tokens:
        return False
    text, kind = tokens[-1]
    if kind == "comment":
        return not (before.endswith("\n") if text.startswith("--") else text.endswith("*/"))
    return kind == "string_const" and not (len(text) > 1 and text.endswith(text[0]))


def _begins(name: str, typed: str) -> bool:
    return name.lower().startswith(typed.lower())


def _beginning(typed: str, names: Iterable[str], kind: str) -> list[Candidate]:
    return [Candidate(name, kind) for name in names if _begins(name, typed)]


def _cased(keyword: str, typed: str) -> str:
    """A keyword as the user writes them: in capitals, or not."""
    return keyword.upper() if typed[:1].isupper() else keyword.lower()
