"""Shards of a plan: what `--shard` takes, and that groups are dealt fairly, each to one shard, as a plan grows too."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_lens.errors import UsageError
from energy_lens.ingest.pipeline import IngestOptions
from energy_lens.warehouse.plan import Context, PlannedDocument, plan_groups
from energy_lens.warehouse.shards import MOST_SHARDS, Shard, deal

#: Category, half and tokens of groups, in the order of a plan.
GROUPS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("AB"), st.integers(1, 20_000)), max_size=200)


@given(GROUPS, st.integers(1, 40))
@settings(max_examples=100)
def test_every_group_is_of_one_shard_and_no_cell_is_unfair(groups: list[tuple[str, str, int]], n: int) -> None:
    """Whatever the groups: in each category and half, shards differ by at most a group."""
    shards = deal(groups, n)
    assert len(shards) == len(groups)
    assert set(shards) <= set(range(1, n + 1))
    by_cell: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for (category, half, _), shard in zip(groups, shards, strict=True):
        by_cell[category, half][shard] += 1
    for counts in by_cell.values():
        sizes = [counts[shard] for shard in range(1, n + 1)]
        assert max(sizes) - min(sizes) <= 1


@given(GROUPS, st.integers(1, 40), st.data())
@settings(max_examples=50)
def test_a_plan_that_grows_deals_what_it_had_as_before(groups: list[tuple[str, str, int]], n: int, data: Any) -> None:
    """Shards that were computed before more text was appended stay what they are."""
    length = data.draw(st.integers(0, len(groups)))
    assert deal(groups[:length], n) == deal(groups, n)[:length]


@given(st.lists(st.integers(1, 60), min_size=8, max_size=40), st.integers(1, 3), st.integers(2, 8))
@settings(max_examples=30)
def test_shards_of_a_plan_are_equal_in_tokens(sizes: list[int], n_categories: int, n: int) -> None:
    """Of a real plan: all shards are within two of its largest groups of each other, in any category within one."""
    documents = []
    for i, size in enumerate(sizes):
        contexts = tuple(Context(1_000 * i + k, i, k, 128 * k, 128) for k in range(size))
        documents.append(PlannedDocument(i, f"c{i % n_categories}", "AB"[i % 2], f"{i:064x}", contexts))
    groups = plan_groups(documents, segment=4, seed=0)
    shards = deal([(group.category, group.half, group.n_tokens) for group in groups], n)
    tokens: Counter[int] = Counter()
    for group, shard in zip(groups, shards, strict=True):
        tokens[shard] += group.n_tokens
    largest = max(group.n_tokens for group in groups)
    assert max(tokens.values()) - min(tokens[shard] for shard in range(1, n + 1)) <= 2 * largest


@given(st.integers(1, MOST_SHARDS), st.data())
def test_a_shard_is_read_as_it_is_written(n: int, data: Any) -> None:
    shard = Shard(data.draw(st.integers(1, n)), n)
    assert Shard.parse(str(shard)) == shard
    assert shard.is_whole == (n == 1)


@pytest.mark.parametrize(
    "word", ["", "3", "/", "3/", "/4", "0/4", "5/4", "-1/4", "1/0", "1.0/4", "1/4/2", " 1/4", "1/4\n", "٣/٤", "1/99999",
             "1/" + "9" * 5000, "x/y"],
)  # fmt: skip
def test_anything_else_is_refused_in_a_sentence(word: str) -> None:
    with pytest.raises(UsageError, match=r"^--shard is .*\.$") as raised:
        Shard.parse(word)
    assert len(str(raised.value)) < 160


def test_wishes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UsageError, match="two wishes"):
        IngestOptions(plan_only=True, shard=Shard(1, 2))
    with pytest.raises(UsageError, match="--plan-only --new-run"):
        IngestOptions(new_run=True, shard=Shard(1, 2))
    for stage in ("", " ", "http://example.org/x", "ftp://x/y", "a\nb"):
        with pytest.raises(UsageError):
            IngestOptions(stage=stage)
