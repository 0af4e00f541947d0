"""The doctor's round: every finding on this machine and a warehouse, one after the other. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from energy_lens.analysis.doctor import contents, machine, storage
from energy_lens.analysis.doctor.finding import Finding, carried_out


def examine(warehouse: Path, is_named: bool = True, checks: str = "quick") -> Iterator[Finding]:
    """Each finding as soon as it is made.

    is_named: the user named that file, so that there should be one. checks: which of elw check's are run: quick (those
    that read no table of tokens or activations), all or none.
    """
    yield from carried_out("versions", machine.versions)
    yield from carried_out("processor", machine.processor)
    yield from carried_out("memory", machine.memory)
    yield from carried_out("compiler", machine.compiler)
    yield from carried_out("cache", storage.cache)
    yield from carried_out("disk", partial(storage.room, warehouse))
    yield from carried_out("locks", partial(storage.locks, warehouse))
    yield from carried_out("warehouse", partial(contents.warehouse, warehouse, is_named, checks))
