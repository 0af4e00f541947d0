"""A plan's groups in, those of one shard out: how tasks that know nothing of each other share a run.

Groups are dealt in the order of the plan, each to the shard that has the fewest groups of its category and half, and
of those with equally many to the one with the fewest tokens. So shards differ by at most a group in every category and
half, and hardly in tokens; and a plan that grows deals its earlier groups as before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energy_lens.errors import require

#: Shards, at most: as many tasks as the largest clusters let an array have.
MOST_SHARDS = 10_000

#: Digits of a number that is looked at at all.
_DIGITS = 9


@dataclass(frozen=True)
class Shard:
    """One of the equal parts of a plan."""

    index: int  #: from 1
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that a word such as 3/16 names. Raises UsageError for any other word."""
        found = re.fullmatch(rf"([0-9]{{1,{_DIGITS}}})/([0-9]{{1,{_DIGITS}}})", text, re.ASCII)
        shown = repr(text if len(text) <= 40 else text[:40] + "…")
        require(found is not None, f"--shard is {shown}; two numbers are expected, as in 3/16.")
        assert found is not None
        shard = cls(int(found[1]), int(found[2]))
        require(shard.of >= 1, f"--shard is {text}; there must be at least one shard, as in 1/1.")
        require(shard.of <= MOST_SHARDS, f"--shard is {text}; at most {MOST_SHARDS:,} shards are possible.")
        require(
            1 <= shard.index <= shard.of,
            f"--shard is {text}; shards are counted from 1 to {shard.of}, as in 1/{shard.of}.",
        )
        return shard

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the plan."""
        return self.of == 1

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


def deal(groups: Iterable[tuple[str, str, int]], n_shards: int) -> list[int]:
    """The index of the shard, from 1, that carries out each group.

    groups: category, half and tokens of each, in the order of the plan.
    """
    tokens = np.zeros(n_shards, dtype=np.int64)
    by_cell: dict[tuple[str, str], NDArray[np.int64]] = {}
    indices = []
    for category, half, n_tokens in groups:
        n_groups = by_cell.setdefault((category, half), np.zeros(n_shards, dtype=np.int64))
        fewest = np.flatnonzero(n_groups == n_groups.min())
        chosen = int(fewest[tokens[fewest].argmin()])
        n_groups[chosen] += 1
        tokens[chosen] += n_tokens
        indices.append(chosen + 1)
    return indices
