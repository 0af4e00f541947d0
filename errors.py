"""Errors that a user sees: one sentence that says what is wrong and what to do, and an exit code.

0 ok, 1 failed, 2 usage, 3 warehouse can't be opened, 130 interrupted.
"""

from __future__ import annotations

#: The largest seed: every generator in use takes it, whatever is multiplied into it.
LARGEST_SEED = 2**32 - 1

#: The largest count of tokens, contexts or the like: beyond any corpus, and within what a library counts with.
LARGEST_COUNT = 10**12

#: Tokens of a forward pass, at most: some 20 GB of a small model's own numbers.
LARGEST_PASS = 2**20

#: Tokens of a context, at most: positions are stored in two bytes.
LONGEST_CONTEXT = 32_767


class ElwError(Exception):
    """The work failed; the message is a sentence with the remedy."""

    exit_code = 1


class UsageError(ElwError):
    """The request itself cannot be carried out: a wrong option, path, layer or query."""

    exit_code = 2


class WarehouseError(ElwError):
    """The warehouse file cannot be opened: missing, locked, corrupt, or written by a newer version."""

    exit_code = 3


def require(condition: bool, sentence: str) -> None:
    """Raises UsageError unless the condition holds; the sentence names the option as the user typed it."""
    if not condition:
        raise UsageError(sentence)


def require_at_most(option: str, number: float, most: float) -> None:
    """Raises UsageError for a number beyond what can be worked with."""
    require(number <= most, f"{option} is {number:,}; at most {most:,} is possible.")


def require_seed(seed: int) -> None:
    """Raises UsageError for a seed that not every generator takes."""
    require(seed >= 0, f"--seed is {seed}; it must not be negative.")
    require_at_most("--seed", seed, LARGEST_SEED)


def require_batch(batch_size: int, context_length: int, what: str = "context") -> None:
    """Raises UsageError unless that many contexts, or what else there are, make a forward pass that fits in memory."""
    require(batch_size >= 1, f"--batch-size is {batch_size}; at least 1 {what} is needed.")
    most = max(1, LARGEST_PASS // max(1, context_length))
    require(
        batch_size <= most,
        f"--batch-size is {batch_size:,}; at most {most:,} {what}{'es' if what.endswith('ch') else 's'} of "
        f"{context_length:,} tokens are possible, since a pass has no more than {LARGEST_PASS:,} tokens.",
    )
