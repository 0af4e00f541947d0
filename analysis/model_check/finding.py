"""What a check says: two results in, how far they are apart and what that means out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.model.resolving import first_line

#: How far two ways to one result may be apart, relative to its largest number, by the precision of the passes.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 5e-2}


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "ok"
    FAILED = "FAILED"
    INAPPLICABLE = "does not apply"
    FACT = "fact"  #: nothing to compare, something to know


@dataclass(frozen=True)
class Finding:
    """One line of a model check."""

    check: str
    outcome: Outcome
    note: str  #: what was compared; of a check that failed what follows from that, of one that does not apply why
    difference: float | None = None  #: the largest, relative to the largest number that was compared
    tolerance: float | None = None


def compared(
    check: str, what: str, pairs: Iterable[tuple[Tensor, Tensor]], tolerance: float, otherwise: str
) -> Finding:
    """Whether the first of each pair is the second, within the tolerance relative to the second's largest number.

    what: was compared; otherwise: the sentence for when they differ.
    """
    difference = 0.0
    for found, expected in pairs:
        largest = float(expected.abs().max()) or 1.0
        apart = float((found - expected).abs().max()) / largest
        difference = max(difference, apart) if apart == apart else float("inf")  # not a number differs from everything
    return judged(check, what, difference, tolerance, otherwise)


def judged(check: str, what: str, difference: float, tolerance: float, otherwise: str) -> Finding:
    """The same from the difference itself."""
    passed = difference <= tolerance
    return Finding(
        check, Outcome.PASSED if passed else Outcome.FAILED, what if passed else otherwise, difference, tolerance
    )


def inapplicable(check: str, why: str) -> Finding:
    return Finding(check, Outcome.INAPPLICABLE, why)


def fact(check: str, note: str) -> Finding:
    return Finding(check, Outcome.FACT, note)


def carried_out(check: str, work: Callable[[], Finding | Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of some work; what it raises is one too: UsageError says why it does not apply, all else failed."""
    try:
        findings = work()
        yield from [findings] if isinstance(findings, Finding) else findings
    except UsageError as error:
        yield inapplicable(check, str(error))
    except Exception as error:  # whatever a model's own code raises
        yield Finding(check, Outcome.FAILED, f"It could not be carried out ({first_line(error)}).")
