"""`elw merge`: warehouses of shards and staged groups in, one warehouse with the statistics of their run out.

The rows are `warehouse.merging`'s. Statistics want decoder rows, which come from the SAEs that the run knows, and the
logits of a card the run's model. So that nothing is found missing after hours, SAEs are read before any row is moved.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.console import say, some_of
from energy_lens.errors import ElwError
from energy_lens.ingest.pipeline.feature_logits import fill_feature_logits
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.statistics.finish import finish
from energy_lens.warehouse.database import Warehouse, ingest_lock
from energy_lens.warehouse.merging.run import Merge
from energy_lens.warehouse.runs import make_current


@dataclass
class MergeSummary:
    """What a merge did."""

    db: str
    run_id: int
    model: str
    tokens: int  #: that the file holds of the run
    planned_tokens: int
    new_tokens: int  #: that this merge took over
    new_groups: int
    new_rows: int
    missing_groups: int  #: that no source had
    missing_shards: list[str]  #: that these are of, where the sources say so
    seconds: float  #: of taking rows over
    finish_seconds: float
    is_finished: bool  #: the statistics are of all tokens that the file holds
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.new_groups:
            told = (
                f"Run {self.run_id} of {self.db} holds {self.tokens:,} of {self.planned_tokens:,} planned tokens; "
                f"{self.new_tokens:,} of them are new, {self.new_rows:,} rows in {self.seconds:,.0f} s."
            )
        else:
            told = f"Nothing to take over: run {self.run_id} of {self.db} holds {self.tokens:,} tokens already."
        if self.missing_groups:
            shards = f", of {_counted(len(self.missing_shards), 'shard')} {some_of(self.missing_shards)}"
            told += f" {_counted(self.missing_groups, 'group')} of the plan {_are(self.missing_groups)} in no source"
            told += f"{shards if self.missing_shards else ''}."
            if not self.is_finished:
                told += " Statistics wait for them: merge these, too, or finish what is there with --finish."
        return told


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def merge(sources: Sequence[str], db: Path, run: str | None = None, finish_part: bool = False) -> MergeSummary:
    """Take over the groups of a run that `db` lacks, and finish its statistics once all of the plan are there.

    sources: warehouses, stages as folders or URLs; without any, what the file itself knows to be staged.
    run: its number in the first warehouse among them, or the beginning of its identity.
    finish_part: finish what is there, although groups are missing.
    Raises UsageError and WarehouseError for sources that will not do, before anything is changed; ElwError for one that
    turns out to be damaged: what was taken before stays, and the same call does the rest.
    """
    with ingest_lock(db, "elw merge"):
        work = Merge(sources, db, run)
        current = CurrentRun(db, work.run_id)
        finishes = finish_part or not work.missing
        is_behind = not work.is_finished or any(work.to_take.values())
        saes = {layer: current.sae(layer) for layer in current.facts.layers} if finishes and is_behind else {}
        merged = work.carry_out()
        notes: list[str] = []
        started = time.monotonic()
        if saes and work.committed:
            notes = _finish(db, current, saes, is_whole=not work.missing)
            work.look()
        return MergeSummary(
            db=str(db),
            run_id=work.run_id,
            model=current.facts.model,
            tokens=work.tokens,
            planned_tokens=sum(work.n_tokens.values()),
            new_tokens=merged.new_tokens,
            new_groups=merged.new_groups,
            new_rows=merged.new_rows,
            missing_groups=len(work.missing),
            missing_shards=work.missing_shards,
            seconds=merged.seconds,
            finish_seconds=time.monotonic() - started,
            is_finished=work.is_finished,
            notes=[*work.notes, *notes],
        )


def _finish(db: Path, current: CurrentRun, saes: dict[int, SparseAutoencoder], is_whole: bool) -> list[str]:
    """Fill the statistics of a run and make it the current one; sentences on what could not be had.

    is_whole: all groups of its plan are there.
    """
    say("Finishing the statistics …")
    open_warehouse = partial(Warehouse, db, writable=True, create=False)
    finish(open_warehouse, current.run_id, {layer: sae.W_dec for layer, sae in saes.items()})
    with open_warehouse() as warehouse, warehouse.transaction():
        make_current(warehouse, current.run_id)
        if is_whole:
            warehouse.run("ingest/record_shard", run=current.run_id, shard=None)
    try:
        fill_feature_logits(open_warehouse, current.run_id, current.load_model, saes)
    except ElwError as error:  # the model may be on other machines alone, and no statistic needs it
        reason = str(error).rstrip(".")
        note = f"Its features have no logits yet, since the model is not here ({reason}): elw features build adds them."
        say(note)
        return [note]
    return []
