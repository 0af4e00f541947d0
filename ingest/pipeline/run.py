"""A corpus, a model and its SAEs in, a filled warehouse out: the five steps of an ingest, one after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from energy_lens.console import bar, say
from energy_lens.ingest.contexts import TokenSource
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.energies.base import Energy
from energy_lens.ingest.energies.registry import choose_translators, make_energies
from energy_lens.ingest.model.bos import adds_bos, set_bos, wants_bos
from energy_lens.ingest.model.compiling import compile_blocks, pays
from energy_lens.ingest.model.configuration import check_window, configuration_sha256
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import (
    DTYPES,
    ModelOnDemand,
    is_folder,
    load_tokenizer,
    locate,
    resolved,
    tokenizer_sha256,
)
from energy_lens.ingest.model.precision import load_in, name_of
from energy_lens.ingest.model.window import settle_context_length
from energy_lens.ingest.pipeline.calibration import calibrate
from energy_lens.ingest.pipeline.commits import Writer
from energy_lens.ingest.pipeline.feature_logits import fill_feature_logits
from energy_lens.ingest.pipeline.groups import GroupBuilder
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.ingest.pipeline.planning import Notes, bring_up_to_date, groups_left
from energy_lens.ingest.pipes import Pipe
from energy_lens.ingest.reading import Instruments, Reader
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import check_saes, choose_saes
from energy_lens.ingest.statistics.directions import read_directions
from energy_lens.ingest.statistics.finish import finish
from energy_lens.ingest.statistics.histograms import read_histogram_plan
from energy_lens.warehouse.database import Warehouse, ingest_lock
from energy_lens.warehouse.plan import Group
from energy_lens.warehouse.query import say_left_rows
from energy_lens.warehouse.runs import (
    RunSettings,
    StoredDocument,
    StoredRun,
    find_run,
    latest_generation,
    make_current,
    open_again,
)


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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.new_groups == 0 and not self.interrupted:
            return f"Nothing to do: run {self.run_id} of {self.db} holds these {self.tokens:,} tokens already."
        speed = f" ({self.tokens_per_second:,.0f} tokens/s)" if self.tokens_per_second else ""
        return (
            f"Run {self.run_id} of {self.db} holds {self.tokens:,} of {self.planned_tokens:,} planned tokens from "
            f"{self.documents} documents; {self.new_tokens:,} of them are new, in {self.seconds:,.0f} s{speed}."
        )


def ingest(paths: Sequence[str | Path | Pipe], options: IngestOptions) -> IngestSummary:
    """Run a model and its SAEs over the text below `paths` and store what they say.

    Raises UsageError for input that cannot be used, WarehouseError when the file cannot be opened, ElwError when the
    work fails; whatever groups were committed before stay, and the same call goes on from there.
    Ctrl-C finishes the statistics of what is committed and returns a summary marked `interrupted`.
    """
    options = replace(options, model=resolved(options.model))
    documents = {document.sha256: document for document in discover(paths, options.exclude, options.columns)}
    energies = make_energies(options.energies, lambda: choose_translators(options.model, options.lens))
    saes = choose_saes(options.model, options.layers, options.saes)
    for energy in energies:
        energy.check_sites(saes.values())
    with ingest_lock(options.db):
        settings, run, model = settle(options, energies, saes, documents)
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


# ------------------------------------------------------------------------------------------------ settling


def settle(
    options: IngestOptions,
    energies: Sequence[Energy],
    saes: Mapping[int, SparseAutoencoder],
    documents: Mapping[str, Document],
) -> tuple[RunSettings, StoredRun | None, LanguageModel | None]:
    """The final settings (precision and generation), the stored run that has them, and the model if it was loaded."""
    wanted = wanted_settings(options, energies, saes)
    just = documents if options.just_these else None
    # Opening to write makes the file, or brings its schema up to date, before any time goes into the model.
    with Warehouse(options.db, writable=True) as warehouse:
        say_left_rows(warehouse)
        candidates = stored_runs(warehouse, wanted, just)
    model = None
    if wanted.dtype != "float32" and (options.new_run or not candidates):
        model = load_in(options.model, wanted.dtype, wanted.context_length, max(saes))
        if wanted.dtype != "auto" and name_of(model) != wanted.dtype:  # which the model cannot run in
            with Warehouse(options.db, writable=True, create=False) as warehouse:
                candidates = stored_runs(warehouse, replace(wanted, dtype=name_of(model)), just)
        wanted = replace(wanted, dtype=name_of(model))
    if candidates and not options.new_run:
        return *max(candidates, key=lambda candidate: candidate[1].run_id), model
    if just is not None:  # what has other documents has its generation all the same
        with Warehouse(options.db, writable=True, create=False) as warehouse:
            candidates = stored_runs(warehouse, wanted)
    generation = max((settings.generation + 1 for settings, _ in candidates), default=0)
    return replace(wanted, generation=generation), None, model


def wanted_settings(
    options: IngestOptions, energies: Sequence[Energy], saes: Mapping[int, SparseAutoencoder]
) -> RunSettings:
    """What the options ask for; dtype may still be auto, and the generation is 0."""
    folder, model_sha256 = locate(options.model)
    bos = wants_bos(options.bos, saes.values(), lambda: adds_bos(load_tokenizer(options.model, folder)))
    return RunSettings(
        model_sha256=model_sha256,
        tokenizer_sha256=tokenizer_sha256(folder),
        context_length=settle_context_length(options.model, options.context_length),
        saes={layer: sae.sha256 for layer, sae in saes.items()},
        energies={energy.name: energy.identity for energy in energies},
        dtype=options.dtype,
        seed=options.seed,
        store_gradients=options.store_gradients,
        probes=options.probes,
        bos=bos,
        # A GGUF file holds its configuration, so that its hash is that of both.
        configuration_sha256=configuration_sha256(folder) if is_folder(options.model) else "",
    )


def stored_runs(
    warehouse: Warehouse, wanted: RunSettings, just: Mapping[str, Document] | None = None
) -> list[tuple[RunSettings, StoredRun]]:
    """The latest run with the wanted settings; where dtype is auto, the latest in each precision.

    A run that an older version began does not know the model's configuration, and is gone on with.
    just: documents by sha256; only runs that hold these and no others are looked at.
    """
    runs = []
    for dtype in list(DTYPES) if wanted.dtype == "auto" else [wanted.dtype]:
        for configuration in dict.fromkeys([wanted.configuration_sha256, ""]):
            settings = replace(wanted, dtype=dtype, configuration_sha256=configuration)
            if found := _latest(warehouse, settings, just):
                runs.append(found)
                break
    return runs


def _latest(
    warehouse: Warehouse, wanted: RunSettings, just: Mapping[str, Document] | None
) -> tuple[RunSettings, StoredRun] | None:
    """The latest run with the wanted settings apart from their generation, of just those documents where they count."""
    latest = latest_generation(warehouse, wanted)
    for generation in range(latest, -1 if just is not None else latest - 1, -1):
        settings = replace(wanted, generation=generation)
        run = find_run(warehouse, settings.identity)
        if run and (just is None or _names(run.documents) == _names(just)):
            return settings, run
    return None


def _names(documents: Mapping[str, Document] | Mapping[str, StoredDocument]) -> dict[str, str]:
    """{sha256: path} of documents."""
    return {sha256: document.path for sha256, document in documents.items()}


def choose_instruments(
    options: IngestOptions,
    settings: RunSettings,
    energies: Sequence[Energy],
    saes: Mapping[int, SparseAutoencoder],
    loaded: LanguageModel | None = None,
) -> Instruments:
    """What the run reads with; that the model fits SAEs and energies is checked when it is loaded, or first used."""

    def check(model: LanguageModel) -> None:
        set_bos(model, settings.bos)
        check_window(options.model, model.window, settings.context_length)
        check_saes(model, saes.values())
        for energy in energies:
            outputs = [sae.layer if (block := sae.site_out.output_of) is None else block for sae in saes.values()]
            energy.check(model, outputs)

    model = ModelOnDemand(options.model, DTYPES[settings.dtype], check, loaded)
    return Instruments(model, saes, energies, options.batch_size, options.probes, options.seed)


# ------------------------------------------------------------------------------------------------ carrying out


def carry_out(
    options: IngestOptions,
    settings: RunSettings,
    run: StoredRun,
    instruments: Instruments,
    source: TokenSource,
    notes: Notes,
) -> IngestSummary:
    """Process and commit what is left of the plan, then finish."""
    left = groups_left(run, options.max_tokens)
    committed, interrupted = left, False
    started = time.monotonic()
    if left:
        try:
            # All at once: a table is read once, whatever its rows' order is in the plan.
            source.add_planned(run, (context for group in left for row in group.rows for context in row))
            started = time.monotonic()
            process(options, settings.context_length, run, left, instruments, source)
        except KeyboardInterrupt:
            interrupted = True
            say("Interrupted: finishing the statistics of what is committed …")
            committed = committed_among(left, options.db, run)
    seconds = time.monotonic() - started
    n_tokens = sum(group.n_tokens for group in committed)
    started = time.monotonic()
    if unfinished := run.stats_groups != len(run.committed) + len(committed):
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
        tokens=run.committed_tokens + n_tokens,
        planned_tokens=sum(group.n_tokens for group in run.groups),
        new_tokens=n_tokens,
        new_groups=len(committed),
        seconds=seconds,
        tokens_per_second=n_tokens / seconds if n_tokens else None,
        finish_seconds=time.monotonic() - started,
        interrupted=interrupted,
        notes=notes.sentences,
    )


def process(
    options: IngestOptions,
    context_length: int,
    run: StoredRun,
    groups: Sequence[Group],
    instruments: Instruments,
    source: TokenSource,
) -> None:
    """Run the groups and commit them all, each as soon as the file is free."""
    energies = [energy.name for energy in instruments.energies]
    with open_again(options.db, run) as warehouse:
        histogram_plan = read_histogram_plan(warehouse, run.run_id, instruments.saes, energies)
        directions = read_directions(warehouse, run.run_id, instruments.saes, instruments.seed)
    reader = instruments.reader()
    n_tokens = sum(group.n_tokens for group in groups)
    fuse(options, context_length, run, reader, n_tokens)
    builder = GroupBuilder(run.run_id, context_length, reader, histogram_plan, directions, options.store_gradients)
    with bar("Ingest", n_tokens, "token") as progress, Writer(options.db, run) as writer:
        for group in groups:
            writer.announce()
            token_ids = source.contexts_of(run, [context for row in group.rows for context in row])
            writer.put(builder.build(group, token_ids, on_tokens=progress.update))


def fuse(options: IngestOptions, context_length: int, run: StoredRun, reader: Reader, n_tokens: int) -> None:
    """Have the model's blocks compiled if that was asked for, or pays for so many tokens, and note it with the run."""
    how = reader.model, (options.batch_size, context_length), min(reader.saes)
    if options.compile == "off" or (options.compile == "auto" and not pays(*how, n_tokens)):
        return
    inside = [sae for sae in reader.saes.values() for site in (sae.site, sae.site_out) if not site.is_block_output]
    reason: str | None
    if inside:
        reason = f"the SAE of layer {inside[0].layer} looks into one, at {inside[0].hook_name}"
    else:
        say("Compiling the model's blocks …")
        reason = compile_blocks(*how)
    if reason:
        say(f"The model's blocks are not compiled: {reason}. The run goes on without, at four fifths of the speed.")
        return
    with open_again(options.db, run) as warehouse:
        warehouse.run("ingest/record_compiled", run=run.run_id)


def committed_among(groups: Sequence[Group], db: Path, run: StoredRun) -> list[Group]:
    """Those of the groups that are in the file: Ctrl-C may have come right after a commit."""
    with open_again(db, run) as warehouse:
        stored = find_run(warehouse, run.identity)
    assert stored is not None
    return [group for group in groups if group.group_id in stored.committed]
