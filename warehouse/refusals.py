"""A parsed script in, the statement of it that reaches files out, by the word that names it.

What a statement does is decided by how it begins, as in SQL's grammar: behind EXPLAIN and PREPARE, which wrap another.
What stands in its strings, names and comments has no say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import duckdb

#: Types of statements that reach files, as the parser has them.
_FILE_TYPES = {"COPY", "COPY_DATABASE", "EXPORT", "ATTACH", "LOAD"}

#: Their first words, for what the parser has under the type of something else: COPY … FROM DATABASE and IMPORT DATABASE
#: under PRAGMA, COPY of a PIVOT under MULTI, and what EXPLAIN and PREPARE wrap under these (DuckDB 2.0).
_FILE_WORDS = {"COPY", "EXPORT", "IMPORT", "ATTACH", "LOAD", "INSTALL"}

#: What PRAGMA can call to the same effect.
_FILE_PRAGMAS = {"IMPORT_DATABASE", "EXPORT_DATABASE", "COPY_DATABASE"}


def file_statement(statements: Sequence[duckdb.Statement], script: str) -> str | None:
    """The word for the first of a script's statements that reaches files; None when none does."""
    for statement in statements:
        if statement.type.name in _FILE_TYPES:
            return str(statement.type.name).replace("_", " ")
        if statement.query.strip():
            word = _first_word(_words(statement.query))
            if word in _FILE_WORDS:
                return word
        # DuckDB 1.5 loses the text of a PIVOT, and of what wraps one: then any such word in the script has to do.
        elif named := [word for word in _words(script) if word in _FILE_WORDS]:
            return named[0]
    return None


def _first_word(words: Sequence[str]) -> str:
    """The word that says what a statement does, or the one that it wraps; empty where there is none."""
    left = list(words)
    while left:
        if left[0] == "EXPLAIN":
            del left[0]
            while left and left[0] in ("ANALYZE", "ANALYSE", "VERBOSE"):
                del left[0]
            _drop_parentheses(left)  # options, or the whole of a SELECT
        elif left[0] == "PREPARE":
            del left[:2]  # with its name
            _drop_parentheses(left)
            del left[:1]  # AS
        elif left[0] == "FORCE":  # INSTALL
            del left[0]
        elif left[0] == "PRAGMA" and left[1:2] and left[1] in _FILE_PRAGMAS:
            return left[1].partition("_")[0]
        else:
            return left[0]
    return ""


def _drop_parentheses(words: list[str]) -> None:
    depth = 0
    while words and (depth or words[0] == "("):
        depth += (words[0] == "(") - (words[0] == ")")
        del words[0]


def _words(query: str) -> list[str]:
    """A query's words in upper case, and its parentheses; a string or a quoted name is one word, its quote."""
    text = query.encode()  # tokens are counted in bytes
    tokens = duckdb.tokenize(query)
    ends = [start for start, _ in tokens[1:]] + [len(text)]
    words: list[str] = []
    for (start, kind), end in zip(tokens, ends, strict=True):
        token = text[start:end].decode()
        if kind.name == "operator":
            words += re.findall(r"[()]", token)
        elif kind.name != "comment":
            word = re.match(r"\w+", token)
            words.append(word[0].upper() if word and kind.name != "string_const" else token[:1])
    return words
