"""Staged groups in, what a warehouse knows of them out: which of a run's groups are finished and lie elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from energy_lens.console import say
from energy_lens.errors import WarehouseError
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.staging.groups import StagedGroup, missing_ids


def register_group(warehouse: Warehouse, run_id: int, staged: StagedGroup) -> None:
    """Note that a group is finished and where its rows lie.

    Raises WarehouseError, with nothing noted, when the run's plan does not have the group, or has it stored or staged.
    """
    with warehouse.transaction():
        if not register_groups(warehouse, run_id, [staged]):
            raise WarehouseError(
                f"{warehouse.path} was changed while its ingest was under way: group {staged.group_id} of run {run_id} "
                "is not planned there, or finished already. Run the command again."
            )


def register_groups(warehouse: Warehouse, run_id: int, groups: Iterable[StagedGroup]) -> list[int]:
    """Note those of the groups that are planned and not finished; returns their ids. Call within a transaction."""
    noted = []
    for staged in groups:
        n_noted = warehouse.run(
            "merge/register_group", run=run_id, group=staged.group_id, location=staged.location, n_rows=staged.n_rows,
            n_bytes=staged.n_bytes, staged_at=staged.staged_at,
        ).value()  # fmt: skip
        noted += [staged.group_id] * n_noted
    warehouse.run("ingest/touch_run", run=run_id)
    return noted


def staged_locations(warehouse: Warehouse, run_id: int) -> dict[int, str]:
    """Where the staged groups of a run lie, by group_id."""
    return dict(warehouse.run("merge/staged", run=run_id).fetchall())


def forget_missing(warehouse: Warehouse, run_id: int) -> list[int]:
    """Strike out staged groups whose files are gone, and say so; returns their ids.

    Raises ElwError where the folder of a run's groups is not there as a whole.
    """
    missing = missing_ids(staged_locations(warehouse, run_id).items())
    if missing:
        with warehouse.transaction():
            forget(warehouse, run_id, missing)
        first = next(iter(missing.values()))
        what = "1 staged group is" if len(missing) == 1 else f"{len(missing):,} staged groups are"
        say(f"{what} gone, such as {first}: the same elw ingest computes them again.")
    return sorted(missing)


def forget(warehouse: Warehouse, run_id: int, groups: Iterable[int]) -> None:
    """Strike out staged groups. Call within a transaction."""
    warehouse.run("merge/forget_staged", run=run_id, groups=list(groups))
