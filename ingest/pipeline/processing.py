"""What is left of the plan in, committed groups out: computed here, or by the workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from energy_lens.console import bar, say
from energy_lens.ingest.cluster import Cluster, Crew, connected
from energy_lens.ingest.contexts import TokenSource
from energy_lens.ingest.model.compiling import compile_blocks, cpp_compiler, pays
from energy_lens.ingest.model.loading import weight_bytes
from energy_lens.ingest.pipeline.commits import Writer
from energy_lens.ingest.pipeline.groups import GroupBuilder
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.ingest.pipeline.stage import Stage
from energy_lens.ingest.pipeline.work import GroupJob, Lacking, PackedGroup, contexts_in, group_task
from energy_lens.ingest.reading import Instruments, Reader
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.statistics.directions import read_directions
from energy_lens.ingest.statistics.histograms import read_histogram_plan
from energy_lens.warehouse.plan import Group
from energy_lens.warehouse.runs import RunSettings, StoredRun, open_again
from energy_lens.warehouse.staging.groups import StagedGroup

#: What is said where a group ends one worker after the other.
REMEDY = "what is committed stays; fewer contexts in a pass (--batch-size) take less memory"


def process(
    options: IngestOptions,
    settings: RunSettings,
    run: StoredRun,
    groups: Sequence[Group],
    instruments: Instruments,
    source: TokenSource,
    stage: Stage | None = None,
) -> None:
    """Run the groups in this process and commit them all, each as soon as the file is free.

    stage: where their rows go; what is committed is that they are there.
    """
    energies = [energy.name for energy in instruments.energies]
    with open_again(options.db, run) as warehouse:
        histogram_plan = read_histogram_plan(warehouse, run.run_id, instruments.saes, energies)
        directions = read_directions(warehouse, run.run_id, instruments.saes, instruments.seed)
    reader = instruments.reader()
    n_tokens = sum(group.n_tokens for group in groups)
    is_compiled = fuse(options, settings.context_length, run, reader, n_tokens)
    if stage:
        stage.is_compiled = is_compiled
    builder = GroupBuilder(
        run.run_id, settings.context_length, reader, histogram_plan, directions, options.store_gradients
    )
    with bar("Ingest", n_tokens, "token") as progress, Writer(options.db, run, stage) as writer:
        for group in groups:
            writer.announce()
            token_ids = source.contexts_of(run.by_id, contexts_in(group))
            writer.put(builder.build(group, token_ids, on_tokens=progress.update))


def process_on(
    cluster: Cluster,
    options: IngestOptions,
    settings: RunSettings,
    run: StoredRun,
    groups: Sequence[Group],
    instruments: Instruments,
    source: TokenSource,
    stage: Stage | None = None,
) -> None:
    """Have the groups run by a cluster's workers and commit them here, in the order in which they come.

    stage: where the workers write their rows, which then do not come here; what is committed is that they are there.
    """
    energies = [energy.name for energy in instruments.energies]
    with open_again(options.db, run) as warehouse:
        histogram_plan = read_histogram_plan(warehouse, run.run_id, instruments.saes, energies)
        directions = read_directions(warehouse, run.run_id, instruments.saes, instruments.seed)
    compiled = _compiles(options, settings.context_length, instruments, sum(group.n_tokens for group in groups))
    if stage:
        stage.is_compiled = compiled
    instruments.model.forget()  # the workers have it
    with connected(cluster, weight_bytes(options.model)) as connection:
        if compiled:
            note_compiled(options.db, run)
        # Folders are looked for on every machine, wherever its processes were started.
        here = replace(
            options, saes=tuple(p.absolute() for p in options.saes), lens=options.lens and options.lens.absolute()
        )
        job = GroupJob(here, settings, run.run_id, run.norm_medians, histogram_plan, directions, compiled, stage)
        with (
            Crew(connection, job, remedy=REMEDY) as crew,
            bar("Ingest", sum(group.n_tokens for group in groups), "token") as progress,
            Writer(options.db, run) as writer,
        ):
            for made in _made_by(crew, run, groups, source, progress):
                writer.announce()
                writer.put(made.unpacked() if isinstance(made, PackedGroup) else made)


def _made_by(
    crew: Crew, run: StoredRun, groups: Sequence[Group], source: TokenSource, progress: Any
) -> Iterator[PackedGroup | StagedGroup]:
    """The groups as they come from the workers; texts that a machine has not are sent from then on."""
    n_tokens = sum(group.n_tokens for group in groups)
    lacking, shown = False, 0
    tasks = (group_task(run, group, source, send_ids=lacking) for group in groups)
    for report in crew.reports(tasks):
        done = min(crew.units, n_tokens)  # fewer than before where a worker was lost
        progress.update(max(0, done - shown))
        shown = max(shown, done)
        if report is None:
            continue
        if isinstance(report.result, Lacking):
            if not lacking:
                say(f"{report.worker.capitalize()} has not the corpus ({report.result.reason}): its tokens are sent.")
            lacking = True
            crew.give(group_task(run, report.task.content.group, source, send_ids=True))
            continue
        yield report.result


def _compiles(options: IngestOptions, context_length: int, instruments: Instruments, n_tokens: int) -> bool:
    """Whether the workers have the model's blocks compiled: as one process would, so that numbers are the same."""
    if options.compile == "off" or _inside(instruments.saes.values()) or cpp_compiler() is None:
        return False
    shape = options.batch_size, context_length
    return options.compile == "on" or pays(instruments.model.load(), shape, min(instruments.saes), n_tokens)


def fuse(options: IngestOptions, context_length: int, run: StoredRun, reader: Reader, n_tokens: int) -> bool:
    """Have the model's blocks compiled if that was asked for, or pays for so many tokens, and note it with the run.

    Returns whether they are.
    """
    how = reader.model, (options.batch_size, context_length), min(reader.saes)
    if options.compile == "off" or (options.compile == "auto" and not pays(*how, n_tokens)):
        return False
    reason: str | None
    if inside := _inside(reader.saes.values()):
        reason = f"the SAE of layer {inside[0].layer} looks into one, at {inside[0].hook_name}"
    else:
        say("Compiling the model's blocks …")
        reason = compile_blocks(*how)
    if reason:
        say(f"The model's blocks are not compiled: {reason}. The run goes on without, at four fifths of the speed.")
        return False
    note_compiled(options.db, run)
    return True


def _inside(saes: Iterable[SparseAutoencoder]) -> list[SparseAutoencoder]:
    """Those that look into a block, which has no such place once it is fused."""
    return [sae for sae in saes for site in (sae.site, sae.site_out) if not site.is_block_output]


def note_compiled(db: Path, run: StoredRun) -> None:
    with open_again(db, run) as warehouse:
        warehouse.run("ingest/record_compiled", run=run.run_id)
