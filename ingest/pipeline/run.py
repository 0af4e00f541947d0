"""A corpus, a model and its SAEs in, a filled warehouse out: the five steps of an ingest, one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from energy_lens.console import say
from energy_lens.ingest.contexts import TokenSource
from energy_lens.ingest.corpus import discover
from energy_lens.ingest.energies.registry import choose_translators, make_energies
from energy_lens.ingest.model.loading import (
    resolved,
)
from energy_lens.ingest.pipeline.calibration import calibrate
from energy_lens.ingest.pipeline.feature_logits import fill_feature_logits
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.ingest.pipeline.planning import Notes, bring_up_to_date, groups_left
from energy_lens.ingest.pipeline.processing import process, process_on
from energy_lens.ingest.pipeline.settling import choose_instruments, settle
from energy_lens.ingest.pipeline.stage import open_stage
from energy_lens.ingest.pipes import Pipe
from energy_lens.ingest.reading import Instruments
from energy_lens.ingest.sae.choosing import choose_saes
from energy_lens.ingest.statistics.finish import finish
from energy_lens.warehouse.database import ingest_lock
from energy_lens.warehouse.plan import Group
from energy_lens.warehouse.runs import (
    RunSettings,
    StoredRun,
    find_run,
    make_current,
    open_again,
)
from energy_lens.warehouse.staging.places import place_at
from energy_lens.warehouse.staging.registered import forget_missing


@dataclass
class IngestSummary:
    """What an ingest did."""

    db: str
    run_id: int
    model: str
    dtype: str
    documents: int  #: of the run
    tokens: int  #: committed to the run so far
    planned_tokens: int
    new_tokens: int  #: committed by this ingest
    new_groups: int
    seconds: float  #: from the first group to the last commit
    tokens_per_second: float | None
    finish_seconds: float
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    groups: int = 0  #: of the plan
    staged_tokens: int = 0  #: of the run, in groups that lie in a stage
    shard: str | None = None  #: that was carried out, as in 3/16
    to_do: str | None = None  #: what the run still needs, in a sentence

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        done = self.tokens + self.staged_tokens
        after = f" {self.to_do}" if self.to_do else ""
        if self.new_groups == 0 and not self.interrupted:
            if self.to_do and not done:
                return (
                    f"Run {self.run_id} of {self.db} is planned and calibrated: {self.planned_tokens:,} tokens from "
                    f"{self.documents} documents, in {self.groups:,} groups.{after}"
                )
            return f"Nothing to do: run {self.run_id} of {self.db} holds these {done:,} tokens already.{after}"
        speed = f" ({self.tokens_per_second:,.0f} tokens/s)" if self.tokens_per_second else ""
        staged = f" ({self.staged_tokens:,} of them staged)" if self.staged_tokens else ""
        return (
            f"Run {self.run_id} of {self.db} holds {done:,} of {self.planned_tokens:,} planned tokens{staged} from "
            f"{self.documents} documents; {self.new_tokens:,} of them are new, in {self.seconds:,.0f} s{speed}.{after}"
        )


def ingest(paths: Sequence[str | Path | Pipe], options: IngestOptions) -> IngestSummary:
    """Run a model and its SAEs over the text below `paths` and store what they say.

    Raises UsageError for input that cannot be used, WarehouseError when the file cannot be opened, ElwError when the
    work fails; whatever groups were committed before stay, and the same call goes on from there.
    Ctrl-C finishes the statistics of what is committed and returns a summary marked `interrupted`.
    """
    if options.stage is not None:
        place_at(options.stage).check()
    options = replace(options, model=resolved(options.model))
    documents = {document.sha256: document for document in discover(paths, options.exclude, options.columns)}
    energies = make_energies(options.energies, lambda: choose_translators(options.model, options.lens))
    saes = choose_saes(options.model, options.layers, options.saes)
    for energy in energies:
        energy.check_sites(saes.values())
    with ingest_lock(options.db):
        settings, run, model = settle(options, energies, saes, documents)
        run = run and with_what_is_there(options.db, run)
        instruments = choose_instruments(options, settings, energies, saes, model)
        del model
        source = TokenSource(instruments.model.load, documents, options.db.absolute().parent)
        notes = Notes()
        run = bring_up_to_date(options, settings, run, documents, instruments, source, notes)
        # The run's norm medians are constants: those stored with it, whatever corpus is at hand now.
        instruments = instruments.with_medians(run.norm_medians)
        if not run.calibrated:
            calibrate(options.db, run, instruments, source)
        return carry_out(options, settings, run, instruments, source, notes)


# ------------------------------------------------------------------------------------------------ carrying out


def carry_out(
    options: IngestOptions,
    settings: RunSettings,
    run: StoredRun,
    instruments: Instruments,
    source: TokenSource,
    notes: Notes,
) -> IngestSummary:
    """Process and commit what is left of the plan, or what of it is asked for, then finish."""
    record_shard(options, run)
    stage = None
    if options.stage is not None:
        stage, run = open_stage(options, run)
    left = [] if options.plan_only else groups_left(run, options.max_tokens, options.shard)
    done, interrupted = left, False
    started = time.monotonic()
    if left:
        try:
            if options.cluster is None:
                # All at once: a table is read once, whatever its rows' order is in the plan.
                source.add_planned(run.by_id, (context for group in left for row in group.rows for context in row))
                started = time.monotonic()
                process(options, settings, run, left, instruments, source, stage)
            else:
                process_on(options.cluster, options, settings, run, left, instruments, source, stage)
        except KeyboardInterrupt:
            interrupted = True
            say("Interrupted: finishing the statistics of what is committed …" if options.finishes else "Interrupted.")
            done = done_among(left, options.db, run)
    seconds = time.monotonic() - started
    n_tokens = sum(group.n_tokens for group in done)
    n_staged = sum(group.n_tokens for group in run.groups if group.group_id in run.staged) + n_tokens * bool(stage)
    started = time.monotonic()
    finishes = options.finishes and not n_staged  # statistics of what happens to lie here would be of a part
    if unfinished := finishes and run.stats_groups != len(run.committed) + len(done):
        fill_feature_logits(partial(open_again, options.db, run), run.run_id, instruments.model.load, instruments.saes)
    instruments.model.forget()  # a large run's finish takes memory of its own
    if unfinished:
        decoders = {layer: sae.W_dec for layer, sae in instruments.saes.items()}
        finish(partial(open_again, options.db, run), run.run_id, decoders)
        with open_again(options.db, run) as warehouse, warehouse.transaction():
            make_current(warehouse, run.run_id)
    return IngestSummary(
        db=str(options.db),
        run_id=run.run_id,
        model=options.model,
        dtype=settings.dtype,
        documents=len(run.documents),
        tokens=run.committed_tokens + n_tokens * (not stage),
        planned_tokens=sum(group.n_tokens for group in run.groups),
        new_tokens=n_tokens,
        new_groups=len(done),
        seconds=seconds,
        tokens_per_second=n_tokens / seconds if n_tokens else None,
        finish_seconds=time.monotonic() - started,
        interrupted=interrupted,
        notes=notes.sentences,
        groups=len(run.groups),
        staged_tokens=n_staged,
        shard=str(options.shard) if options.shard else None,
        to_do=None if finishes else what_is_to_do(options, n_staged > 0),
    )


def what_is_to_do(options: IngestOptions, has_staged: bool) -> str:
    """A sentence on how a run comes to its statistics whose groups this ingest leaves to others, or elsewhere."""
    if options.plan_only:
        return "Copy it for each task of elw ingest --shard i/n, or go on without --plan-only."
    if options.shard and not options.shard.is_whole and not has_staged:
        return f"Its statistics wait for the other shards: elw merge joins {options.db.name} with theirs."
    return f"Its statistics wait for the staged groups: elw merge --db {options.db.name} takes them in."


def record_shard(options: IngestOptions, run: StoredRun) -> None:
    """Note with the run which part of its plan this file is for, so that one can tell why it has no statistics."""
    shard = str(options.shard) if options.shard and not options.shard.is_whole else None
    with open_again(options.db, run) as warehouse:
        warehouse.run("ingest/record_shard", run=run.run_id, shard=shard)


def with_what_is_there(db: Path, run: StoredRun) -> StoredRun:
    """The run without staged groups whose files are gone. Raises ElwError where none of them can be reached."""
    if not run.staged:
        return run
    with open_again(db, run) as warehouse:
        missing = forget_missing(warehouse, run.run_id)
    return replace(run, staged=run.staged - set(missing))


def done_among(groups: Sequence[Group], db: Path, run: StoredRun) -> list[Group]:
    """Those of the groups that are in the file, or noted there: Ctrl-C may have come right after a commit."""
    with open_again(db, run) as warehouse:
        stored = find_run(warehouse, run.identity)
    assert stored is not None
    return [group for group in groups if group.group_id in stored.done]
