"""What stands before the cursor in, what Tab offers out: names of SQL, the shell's own words, saved queries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from energy_lens.errors import UsageError
from energy_lens.warehouse.parameters import declared
from energy_lens.warehouse.saved_queries import find, saved_queries
from energy_lens.warehouse.typing_aid import Names


class ShellCompleter(Completer):
    """Completes SQL from a warehouse's names, `.words` and their arguments, and `@queries` with their parameters."""

    def __init__(self, names: Callable[[], Names], words: Mapping[str, Sequence[str] | None]) -> None:
        """words: the shell's own and what may stand behind each; None: a table, view or macro."""
        self._names = names
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        try:
            if before.lstrip().startswith("."):
                return self._of_words(before.lstrip())
            if before.lstrip().startswith("@"):
                return _of_queries(before.lstrip())
            typed = len(re.search(r"\w*$", before)[0])  # type: ignore[index]
            found = self._names().candidates(before, document.text)
        except UsageError:  # nothing to offer is no reason to end a line
            return []
        return [Completion(each.text, -typed, display_meta=each.kind) for each in found]

    def _of_words(self, before: str) -> list[Completion]:
        word, space, argument = before.partition(" ")
        if not space:
            return _those_that_begin(word, self._words)
        offered = self._words.get(word, ())
        return _those_that_begin(argument.lstrip(), self._names().relations if offered is None else offered)


def _of_queries(before: str) -> list[Completion]:
    name, space, rest = before.partition(" ")
    if not space:
        return _those_that_begin(name, [f"@{query.name}" for query in saved_queries()])
    return _those_that_begin(rest.rpartition(" ")[2], [f"{parameter}=" for parameter in declared(find(name).script)])


def _those_that_begin(typed: str, names: Iterable[str]) -> list[Completion]:
    return [Completion(name, -len(typed)) for name in names if name.lower().startswith(typed.lower())]
