"""Documents in, the order of work out: contexts, and the groups, rows and lanes in which they are processed.

A group is one transaction and belongs to one category and one half of its documents. A lane of a group takes a
segment of consecutive contexts of one document, then a segment of another; a row takes one context from each lane,
all of different documents. The contexts of a row are each other's mates in the within-context test.

Everything here is a function of the documents' content, the seed and the segment length, never of paths, batch size
or how much of the plan is carried out. So a prefix of the plan is balanced over categories and halves to within a
group, and a run that was killed goes on where it stood.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

#: A document's tail is kept from this many tokens, its only context from MIN_DOCUMENT.
MIN_TAIL = 16
MIN_DOCUMENT = 3

#: Contexts of a row: more mates make a better estimate of what a position has in common.
LANES = 8

#: A category of at least this many documents is split in halves, so that each has four and z is defined.
SPLIT_FROM = 8

#: Segment lengths, in contexts, and the number of groups that they aim at.
SHORTEST_SEGMENT, LONGEST_SEGMENT, AIMED_GROUPS = 4, 16, 64


@dataclass(frozen=True, slots=True)
class Context:
    """A window of a document."""

    context_id: int
    document_id: int
    context_index: int  #: place within the document
    first_token: int  #: of its text, as an offset in the document's tokens
    n_tokens: int  #: with BOS, where the run has it


@dataclass(frozen=True)
class PlannedDocument:
    """A document with what the plan needs to know of it."""

    document_id: int
    category: str
    half: str  #: A or B
    sha256: str
    contexts: tuple[Context, ...]


@dataclass(frozen=True)
class Group:
    """Contexts that are processed and committed together, as rows of contexts of different documents."""

    group_id: int
    category: str
    half: str
    rows: tuple[tuple[Context, ...], ...]

    @property
    def n_contexts(self) -> int:
        return sum(len(row) for row in self.rows)

    @property
    def n_tokens(self) -> int:
        return sum(context.n_tokens for row in self.rows for context in row)


def cut(n_tokens: int, length: int, bos: bool = False) -> list[tuple[int, int]]:
    """(first token of the text, tokens) of each context of a document of n_tokens.

    bos: whether a BOS token stands before the text of each context, and counts among its tokens.
    """
    room = length - bos
    windows = [(first, min(room, n_tokens - first)) for first in range(0, n_tokens, room)]
    if windows and windows[-1][1] < (min(MIN_TAIL, room) if len(windows) > 1 else MIN_DOCUMENT):
        windows.pop()
    return [(first, n + bos) for first, n in windows]


def sample_contexts(documents: Sequence[PlannedDocument], n_tokens: float, seed: int) -> list[Context]:
    """A seeded sample of contexts, in turn from each category, of at least n_tokens (or all there are)."""
    by_category: dict[str, list[Context]] = {}
    for document in documents:
        by_category.setdefault(document.category, []).extend(document.contexts)
    chosen: list[Context] = []
    total = 0
    for in_turn in rounds(by_category, seed):
        if total >= n_tokens:
            break
        total += sum(context.n_tokens for context in in_turn)
        chosen += in_turn
    return chosen


def rounds(cells: Mapping[Any, Sequence[T]], seed: int) -> Iterator[list[T]]:
    """A seeded, balanced order: round by round, the next one of every cell that has any left, cells in key order."""
    generator = np.random.default_rng(seed)
    queues = [deque(cell[i] for i in generator.permutation(len(cell))) for _, cell in sorted(cells.items())]
    while any(queues):
        yield [queue.popleft() for queue in queues if queue]


def assign_halves(
    documents: Iterable[tuple[str, str]], existing: Mapping[tuple[str, str], int] | None = None
) -> dict[str, str]:
    """Half of each new document, given as (category, sha256); {sha256: half}.

    existing: number of documents already planned, by (category, half). They keep their half; new ones go in the order
    of their hashes to whichever half has fewer, in a category that has at least SPLIT_FROM documents by now.
    """
    counts: Counter[tuple[str, str]] = Counter(existing or {})
    by_category: dict[str, list[str]] = {}
    for category, sha256 in documents:
        by_category.setdefault(category, []).append(sha256)
    halves: dict[str, str] = {}
    for category, hashes in by_category.items():
        total = len(hashes) + counts[category, "A"] + counts[category, "B"]
        for sha256 in sorted(hashes):
            behind = counts[category, "B"] < counts[category, "A"]
            half = "B" if total >= SPLIT_FROM and behind else "A"
            counts[category, half] += 1
            halves[sha256] = half
    return halves


def segment_length(n_contexts: int) -> int:
    """Contexts per segment, so that a corpus of n_contexts makes about AIMED_GROUPS groups."""
    return max(SHORTEST_SEGMENT, min(LONGEST_SEGMENT, n_contexts // (AIMED_GROUPS * LANES)))


def plan_groups(documents: Sequence[PlannedDocument], segment: int, seed: int, first_group: int = 0) -> list[Group]:
    """Groups in the order in which they are processed.

    The next one comes from the category with the fewest tokens so far, and in it from the half with the fewest: with
    groups of equal size, round by round over the categories, A and B in turn.
    """
    parts: dict[tuple[str, str], list[PlannedDocument]] = {}
    for document in documents:
        parts.setdefault((document.category, document.half), []).append(document)
    queues = {key: deque(_fill_groups(parts[key], segment, seed)) for key in sorted(parts)}
    planned: Counter[tuple[str, str]] = Counter()
    groups: list[Group] = []
    while waiting := [key for key in queues if queues[key]]:
        by_category = Counter({category: 0 for category, _ in queues})
        for (category, _), n_tokens in planned.items():
            by_category[category] += n_tokens
        category, half = min(waiting, key=lambda key: (by_category[key[0]], key[0], planned[key], key[1]))
        group = Group(first_group + len(groups), category, half, queues[category, half].popleft())
        planned[category, half] += group.n_tokens
        groups.append(group)
    return groups


def _fill_groups(
    documents: Sequence[PlannedDocument], segment: int, seed: int
) -> list[tuple[tuple[Context, ...], ...]]:
    """The groups of one category and half, each a tuple of rows.

    Row by row, a lane whose segment has ended takes the next document in turn that no other lane holds.
    """
    by_hash = sorted(documents, key=lambda document: document.sha256)
    order = np.random.default_rng(seed).permutation(len(by_hash))
    waiting = deque(deque(by_hash[i].contexts) for i in order if by_hash[i].contexts)
    n_lanes = min(LANES, len(waiting))
    groups: list[tuple[tuple[Context, ...], ...]] = []
    while waiting:
        rows: list[tuple[Context, ...]] = []
        lanes: list[tuple[deque[Context], int]] = []  # (what is left of the document, contexts left in the segment)
        while sum(map(len, rows)) < LANES * segment and (waiting or lanes):
            while waiting and len(lanes) < n_lanes:
                lanes.append((waiting.popleft(), segment))
            rows.append(tuple(contexts.popleft() for contexts, _ in lanes))
            going_on = []
            for contexts, left in lanes:
                if contexts and left > 1:
                    going_on.append((contexts, left - 1))
                elif contexts:
                    waiting.append(contexts)
            lanes = going_on
        waiting.extendleft(reversed([contexts for contexts, _ in lanes]))
        groups.append(tuple(rows))
    return groups
