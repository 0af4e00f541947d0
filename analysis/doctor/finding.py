"""One line of the doctor's: what was looked at, how it is, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from energy_lens.warehouse.output import Rows


class Verdict(StrEnum):
    """How something is."""

    OK = "ok"
    NOTE = "note"  #: works, and there is something to know
    PROBLEM = "problem"  #: something will fail, or has


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    subject: str
    verdict: Verdict
    said: str
    remedy: str | None = None


def ok(subject: str, said: str) -> Finding:
    return Finding(subject, Verdict.OK, said)


def note(subject: str, said: str, remedy: str | None = None) -> Finding:
    return Finding(subject, Verdict.NOTE, said, remedy)


def problem(subject: str, said: str, remedy: str | None) -> Finding:
    return Finding(subject, Verdict.PROBLEM, said, remedy)


def carried_out(subject: str, work: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of some work; whatever it raises is one too, and the doctor goes on."""
    try:
        yield from work()
    except Exception as error:  # a broken library raises anything
        reason = " ".join(str(error).split())[:200]
        remedy = "pip install --force-reinstall energy-lens" if isinstance(error, ImportError) else None
        yield problem(subject, f"it cannot be looked at: {type(error).__name__} ({reason})", remedy)


def finding_rows(findings: Iterable[Finding]) -> Rows:
    """A row for each finding."""
    columns = [(name, "varchar") for name in ("subject", "verdict", "finding", "remedy")]
    return Rows.of(columns, [(f.subject, str(f.verdict), f.said, f.remedy or "") for f in findings])


def size(n_bytes: float) -> str:
    """Bytes as a person reads them, in powers of ten as disks are sold."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"
