"""The plan: every context once, in rows of different documents, balanced at every point, whatever the order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_lens.warehouse.plan import (
    AIMED_GROUPS,
    LANES,
    LONGEST_SEGMENT,
    SHORTEST_SEGMENT,
    SPLIT_FROM,
    Context,
    Group,
    PlannedDocument,
    assign_halves,
    cut,
    plan_groups,
    segment_length,
)

LENGTH = 32


def plan_documents(
    corpus: Mapping[str, tuple[str, int]], existing: Sequence[PlannedDocument] = ()
) -> list[PlannedDocument]:
    """Documents of {content: (category, tokens)} in that order, cut and halved, ids after those that exist."""
    hashes = {content: sha256(content.encode()).hexdigest() for content in corpus}
    counts = Counter((document.category, document.half) for document in existing)
    halves = assign_halves([(category, hashes[content]) for content, (category, _) in corpus.items()], counts)
    next_context = sum(len(document.contexts) for document in existing)
    documents = []
    for document_id, (content, (category, n_tokens)) in enumerate(corpus.items(), len(existing)):
        contexts = tuple(
            Context(next_context + i, document_id, i, first, n) for i, (first, n) in enumerate(cut(n_tokens, LENGTH))
        )
        next_context += len(contexts)
        documents.append(PlannedDocument(document_id, category, halves[hashes[content]], hashes[content], contexts))
    return documents


def contexts_of(groups: Sequence[Group]) -> list[Context]:
    """All contexts of a plan, in order."""
    return [context for group in groups for row in group.rows for context in row]


def by_content(groups: Sequence[Group], documents: Sequence[PlannedDocument]) -> list[object]:
    """A plan in terms of content: ids, which depend on the order of documents, replaced by hashes."""
    hashes = {document.document_id: document.sha256 for document in documents}
    return [
        (
            group.group_id, group.category, group.half,
            [[(hashes[c.document_id], c.context_index, c.first_token, c.n_tokens) for c in row] for row in group.rows],
        )
        for group in groups
    ]  # fmt: skip


SIZES = st.one_of(st.integers(0, 40), st.integers(0, 40 * LENGTH))
CORPORA = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.tuples(st.sampled_from(["natural", "code", "math"]), SIZES),
    max_size=40,
)
# Hypothesis prefers small corpora; these have the many and long documents that fill groups.
CORPORA |= st.builds(
    lambda sizes, n_each: {
        f"{category}{i}": (category, size * LENGTH + i)
        for category, size in zip(("natural", "code", "math"), sizes, strict=False)
        for i in range(n_each)
    },
    st.lists(st.integers(1, 60), min_size=1, max_size=3),
    st.sampled_from([1, 5, 12, 20, 40]),
)
SEGMENTS = st.integers(SHORTEST_SEGMENT, LONGEST_SEGMENT)
SEEDS = st.integers(0, 5)


# ------------------------------------------------------------------------------------------------ cutting


@pytest.mark.parametrize(
    ("n_tokens", "windows"),
    [
        (0, []),
        (2, []),
        (3, [(0, 3)]),
        (127, [(0, 127)]),
        (128, [(0, 128)]),
        (143, [(0, 128)]),
        (144, [(0, 128), (128, 16)]),
        (256, [(0, 128), (128, 128)]),
        (271, [(0, 128), (128, 128)]),
        (272, [(0, 128), (128, 128), (256, 16)]),
    ],
)
def test_cut_at_128(n_tokens: int, windows: list[tuple[int, int]]) -> None:
    """A tail counts from 16 tokens, a document's only context from 3."""
    assert cut(n_tokens, 128) == windows


@given(st.integers(0, 3_000), st.integers(4, 300))
def test_contexts_follow_each_other_and_only_a_short_tail_is_lost(n_tokens: int, length: int) -> None:
    """Contexts are full but for the last, do not overlap or leave gaps, and lose fewer than 16 tokens."""
    windows = cut(n_tokens, length)
    assert all(n == length for _, n in windows[:-1])
    assert all(first == i * length for i, (first, _) in enumerate(windows))
    kept = sum(n for _, n in windows)
    lost = n_tokens - kept
    if not windows:
        assert n_tokens < 3
    else:
        assert windows[0][1] >= 3
        assert 0 <= lost < min(16, length)
        assert lost == (0 if kept % length else n_tokens % length), "a kept tail is kept whole"
        assert len(windows) == 1 or windows[-1][1] >= min(16, length)


# ------------------------------------------------------------------------------------------------ halves


@given(CORPORA)
def test_halves_differ_by_at_most_one_document(corpus: dict[str, tuple[str, int]]) -> None:
    """A category of at least eight documents is split evenly; a smaller one is all A."""
    sizes = Counter((document.category, document.half) for document in plan_documents(corpus))
    for category in {category for category, _ in corpus.values()}:
        a, b = sizes[category, "A"], sizes[category, "B"]
        assert (b == 0) if a + b < SPLIT_FROM else (0 <= a - b <= 1)


@given(CORPORA, st.randoms())
def test_halves_depend_on_content_alone(corpus: dict[str, tuple[str, int]], random: Random) -> None:
    """Listing the documents in another order leaves each in its half."""
    shuffled = list(corpus.items())
    random.shuffle(shuffled)
    halves = {document.sha256: document.half for document in plan_documents(corpus)}
    assert {document.sha256: document.half for document in plan_documents(dict(shuffled))} == halves


@given(CORPORA, CORPORA)
def test_appended_documents_even_the_halves_out(
    first: dict[str, tuple[str, int]], second: dict[str, tuple[str, int]]
) -> None:
    """Documents that come later go where fewer are: an imbalance never grows, and they close it if they can."""
    old = plan_documents(first)
    new = plan_documents({"new" + content: fact for content, fact in second.items()}, old)
    before = Counter((document.category, document.half) for document in old)
    after = before + Counter((document.category, document.half) for document in new)
    for category in {document.category for document in new}:
        a, b = after[category, "A"], after[category, "B"]
        gap = before[category, "A"] - before[category, "B"]
        n_new = a + b - before[category, "A"] - before[category, "B"]
        if a + b < SPLIT_FROM:
            assert b == 0
        elif n_new >= gap:
            assert 0 <= a - b <= 1
        else:
            assert a - b == gap - n_new


# ------------------------------------------------------------------------------------------------ groups and rows


@given(CORPORA, SEGMENTS, SEEDS)
def test_every_context_is_planned_exactly_once(corpus: dict[str, tuple[str, int]], segment: int, seed: int) -> None:
    """Nothing is left out, nothing counted twice, and groups are numbered in order."""
    documents = plan_documents(corpus)
    groups = plan_groups(documents, segment, seed)
    expected = sorted(context.context_id for document in documents for context in document.contexts)
    assert sorted(context.context_id for context in contexts_of(groups)) == expected
    assert [group.group_id for group in groups] == list(range(len(groups)))
    assert sum(group.n_tokens for group in groups) == sum(c.n_tokens for d in documents for c in d.contexts)
    assert all(row for group in groups for row in group.rows)


@given(CORPORA, SEGMENTS, SEEDS)
def test_rows_hold_one_context_of_each_of_several_documents(
    corpus: dict[str, tuple[str, int]], segment: int, seed: int
) -> None:
    """Mates are of other documents, at most eight side by side, all of the group's category and half."""
    documents = plan_documents(corpus)
    places = {document.document_id: (document.category, document.half) for document in documents}
    for group in plan_groups(documents, segment, seed):
        for row in group.rows:
            owners = [context.document_id for context in row]
            assert len(set(owners)) == len(owners) <= LANES
            assert {places[owner] for owner in owners} == {(group.category, group.half)}


@given(CORPORA, SEGMENTS, SEEDS)
def test_a_group_is_full_unless_it_is_the_last(corpus: dict[str, tuple[str, int]], segment: int, seed: int) -> None:
    """A kill costs one group of at most 8 segments (and the rest of its last row), and no group is a splinter."""
    groups = plan_groups(plan_documents(corpus), segment, seed)
    last = {(group.category, group.half): group.group_id for group in groups}
    for group in groups:
        assert 1 <= group.n_contexts < LANES * segment + LANES
        assert group.n_contexts >= LANES * segment or last[group.category, group.half] == group.group_id


@given(CORPORA, SEGMENTS, SEEDS)
def test_documents_are_read_forwards(corpus: dict[str, tuple[str, int]], segment: int, seed: int) -> None:
    """A document's contexts come in their order, never two in one row, so a prefix is a prefix of each document."""
    documents = plan_documents(corpus)
    seen: dict[int, int] = {document.document_id: 0 for document in documents}
    for context in contexts_of(plan_groups(documents, segment, seed)):
        assert context.context_index == seen[context.document_id]
        seen[context.document_id] += 1


@given(st.integers(1, 12), st.integers(1, 60), SEGMENTS, SEEDS)
def test_rows_are_as_wide_as_the_documents_allow(n_documents: int, n_contexts: int, segment: int, seed: int) -> None:
    """With equal documents every row has 8 mates, or all documents if those are fewer, while so many last."""
    documents = [
        PlannedDocument(
            i, "code", "A", sha256(bytes([i])).hexdigest(),
            tuple(Context(i * n_contexts + j, i, j, j * LENGTH, LENGTH) for j in range(n_contexts)),
        )
        for i in range(n_documents)
    ]  # fmt: skip
    left = Counter(dict.fromkeys(range(n_documents), n_contexts))
    for group in plan_groups(documents, segment, seed):
        for row in group.rows:
            assert len(row) <= min(LANES, n_documents)
            if all(left[i] >= segment for i in range(n_documents)):
                assert len(row) == min(LANES, n_documents)
            left.subtract(context.document_id for context in row)


@given(CORPORA, SEGMENTS, SEEDS)
def test_a_lane_stays_with_a_document_for_a_segment(
    corpus: dict[str, tuple[str, int]], segment: int, seed: int
) -> None:
    """Within a group a document is read in stretches of `segment` contexts, unless it or the group ends."""
    documents = plan_documents(corpus)
    n_contexts = {document.document_id: len(document.contexts) for document in documents}
    for group in plan_groups(documents, segment, seed):
        stretch: Counter[int] = Counter()
        for row, following in pairwise(group.rows):
            for context in row:
                stretch[context.document_id] += 1
            going_on = {context.document_id for context in following}
            for context in row:
                at_end = context.context_index + 1 == n_contexts[context.document_id]
                assert context.document_id in going_on or at_end or stretch[context.document_id] % segment == 0


@given(CORPORA, SEGMENTS, SEEDS)
def test_documents_take_turns(corpus: dict[str, tuple[str, int]], segment: int, seed: int) -> None:
    """After any group, no document with text left is more than two segments ahead of another one."""
    documents = plan_documents(corpus)
    read: Counter[int] = Counter()
    for group in plan_groups(documents, segment, seed):
        read.update(context.document_id for context in contexts_of([group]))
        own = [d for d in documents if (d.category, d.half) == (group.category, group.half)]
        going_on = [read[d.document_id] for d in own if read[d.document_id] < len(d.contexts)]
        assert not going_on or max(going_on) - min(going_on) < 2 * segment


# ------------------------------------------------------------------------------------------------ balance


@given(CORPORA, SEGMENTS, SEEDS)
def test_every_prefix_is_balanced_over_categories_and_halves(
    corpus: dict[str, tuple[str, int]], segment: int, seed: int
) -> None:
    """While all of them last, categories are within one group's tokens of each other, and so are their halves."""
    groups = plan_groups(plan_documents(corpus), segment, seed)
    parts = {(group.category, group.half) for group in groups}
    last = {part: max(g.group_id for g in groups if (g.category, g.half) == part) for part in parts}
    categories = sorted({category for category, _ in parts})
    ends = [max(last[part] for part in parts if part[0] == category) for category in categories]
    largest = max((group.n_tokens for group in groups), default=0)
    tokens: Counter[tuple[str, str]] = Counter()
    for group in groups:
        tokens[group.category, group.half] += group.n_tokens
        if group.group_id < min(ends):
            sums = [tokens[category, "A"] + tokens[category, "B"] for category in categories]
            assert max(sums) - min(sums) <= largest
        for category in categories:
            halves = [part for part in parts if part[0] == category]
            if group.group_id < min(last[part] for part in halves):
                assert max(tokens[part] for part in halves) - min(tokens[part] for part in halves) <= largest


def test_groups_of_equal_size_go_round_the_categories_then_the_halves() -> None:
    """The first groups of a corpus hold one of each half of each category: what the demo ingests."""
    corpus = {f"{category}{i}": (category, 40 * LENGTH) for category in ("math", "code") for i in range(8)}
    corpus |= {f"few{i}": ("few", 80 * LENGTH) for i in range(4)}
    groups = plan_groups(plan_documents(corpus), SHORTEST_SEGMENT, seed=0)
    assert [(group.category, group.half) for group in groups[:6]] == [
        ("code", "A"), ("few", "A"), ("math", "A"), ("code", "B"), ("few", "A"), ("math", "B"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ what it depends on


@given(CORPORA, SEGMENTS, SEEDS, st.randoms())
def test_a_plan_depends_on_content_not_on_order(
    corpus: dict[str, tuple[str, int]], segment: int, seed: int, random: Random
) -> None:
    """Documents listed in another order, hence with other ids and paths, give the same groups, rows and lanes."""
    shuffled = list(corpus.items())
    random.shuffle(shuffled)
    documents, others = plan_documents(corpus), plan_documents(dict(shuffled))
    plan = by_content(plan_groups(documents, segment, seed), documents)
    assert by_content(plan_groups(others, segment, seed), others) == plan
    assert by_content(plan_groups(documents[::-1], segment, seed), documents) == plan


def test_a_plan_depends_on_the_seed() -> None:
    """Another seed reads the documents in another order."""
    documents = plan_documents({f"text {i}": ("code", 10 * LENGTH) for i in range(40)})
    plans = [by_content(plan_groups(documents, 4, seed), documents) for seed in range(3)]
    assert plans[0] != plans[1] != plans[2] != plans[0]


@settings(max_examples=50)
@given(CORPORA, CORPORA, SEGMENTS, SEEDS)
def test_an_appended_plan_keeps_existing_groups(
    first: dict[str, tuple[str, int]], second: dict[str, tuple[str, int]], segment: int, seed: int
) -> None:
    """New documents make new groups after the old ones, of new contexts only, and planning twice changes nothing."""
    old = plan_documents(first)
    groups = plan_groups(old, segment, seed)
    new = plan_documents({"new" + content: fact for content, fact in second.items()}, old)
    appended = plan_groups(new, segment, seed, first_group=len(groups))
    assert plan_groups(old, segment, seed) == groups
    assert [group.group_id for group in groups + appended] == list(range(len(groups) + len(appended)))
    ids = [context.context_id for context in contexts_of(groups + appended)]
    assert sorted(ids) == list(range(sum(len(document.contexts) for document in old + new)))
    assert {c.document_id for c in contexts_of(appended)}.isdisjoint({c.document_id for c in contexts_of(groups)})


# ------------------------------------------------------------------------------------------------ segments


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_segment_length_lies_between_4_and_16_and_grows(n: int, m: int) -> None:
    """Longer corpora get longer segments, and no corpus less than 4 or more than 16 contexts a segment."""
    assert (SHORTEST_SEGMENT, LONGEST_SEGMENT) == (4, 16)
    assert 4 <= segment_length(min(n, m)) <= segment_length(max(n, m)) <= 16


@given(st.integers(AIMED_GROUPS * LANES * SHORTEST_SEGMENT, AIMED_GROUPS * LANES * LONGEST_SEGMENT))
def test_segment_length_aims_at_64_groups(n_contexts: int) -> None:
    """In between a corpus makes about 64 groups of 8 segments."""
    n_groups = n_contexts / (LANES * segment_length(n_contexts))
    assert 64 <= n_groups < 64 * 1.25
