"""Ingest: a corpus, a model and its SAEs in, a filled warehouse out.

1. Find the documents; settle model, SAEs, energies and precision: together they are the run's identity.
2. In one transaction write the plan: documents, contexts, groups. A run that exists is continued: documents it does
   not hold are appended as new groups.
3. Before the first group, measure the gradients' mean and spread on a seeded sample (calibration), and store the
   quartiles that came with the SAEs: the bins of mutual information.
4. Group by group: run the model, take statistics, commit everything in one transaction. The file is open only then.
5. Finish: fill feature_statistics.

Killed anywhere, the same command goes on where it stood, and ends with the same tables.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import TokenSource, planned_document
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.energies.base import Energy
from energy_lens.ingest.energies.registry import ENERGIES, choose_translators, make_energies
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import (
    DTYPES,
    load_model,
    locate,
    tokenizer_sha256,
)
from energy_lens.ingest.model.residuals import NORM_MEDIAN_TOKENS, harvest_residuals, norm_medians
from energy_lens.ingest.pipeline.calibration import CALIBRATION_TOKENS, sample_moments
from energy_lens.ingest.pipeline.commits import MAX_PENDING_GROUPS, store_group
from energy_lens.ingest.pipeline.groups import GroupBuilder, GroupTables
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.ingest.reading import Reader
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import check_saes, choose_saes
from energy_lens.ingest.statistics.finish import finish
from energy_lens.ingest.statistics.histograms import quartile_rows, read_histogram_plan
from energy_lens.ingest.statistics.significance import MIN_MATES
from energy_lens.version import __version__
from energy_lens.warehouse.database import LockedError, Warehouse, ingest_lock
from energy_lens.warehouse.plan import (
    Context,
    Group,
    PlannedDocument,
    assign_halves,
    cut,
    plan_groups,
    sample_contexts,
    segment_length,
)
from energy_lens.warehouse.runs import (
    RunSettings,
    StoredRun,
    add_gradient_columns,
    append_plan,
    create_run,
    find_run,
    latest_generation,
    make_current,
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


def ingest(paths: Sequence[str | Path], options: IngestOptions) -> IngestSummary:
    """Run a model and its SAEs over the text below `paths` and store what they say.

    Raises UsageError for input that cannot be used, WarehouseError when the file cannot be opened, ElwError when the
    work fails; whatever groups were committed before stay, and the same call goes on from there.
    Ctrl-C finishes the statistics of what is committed and returns a summary marked `interrupted`.
    """
    documents = discover(paths, options.exclude)
    energies = make_energies(options.energies, lambda: choose_translators(options.model, options.lens))
    saes = choose_saes(options.model, options.layers, options.saes)
    with ingest_lock(options.db):
        return _Ingest(options, documents, energies, saes).run()


# ------------------------------------------------------------------------------------------------ what runs


# ------------------------------------------------------------------------------------------------ the run


class _Ingest:
    """One call of `ingest`, with the ingest lock held."""

    def __init__(
        self,
        options: IngestOptions,
        documents: Sequence[Document],
        energies: Sequence[Energy],
        saes: dict[int, SparseAutoencoder],
    ) -> None:
        self.options = options
        self.documents = {document.sha256: document for document in documents}
        self.energies = energies
        self.saes = saes
        self.notes: list[str] = []

    def run(self) -> IngestSummary:
        folder, model_sha256 = locate(self.options.model)
        wanted = RunSettings(
            model_sha256=model_sha256,
            tokenizer_sha256=tokenizer_sha256(folder),
            context_length=self.options.context_length,
            saes={layer: sae.sha256 for layer, sae in self.saes.items()},
            energies={energy.name: energy.identity for energy in self.energies},
            dtype=self.options.dtype,
            seed=self.options.seed,
            store_gradients=self.options.store_gradients,
            probes=self.options.probes,
        )
        self.settings, run = self._settle(wanted)
        new = self._new_documents(run)
        # What is not going to be read now is not planned either: its text may be another by then.
        satisfied = run is not None and run.committed_tokens >= (self.options.max_tokens or math.inf)
        if run is not None and not satisfied:
            self._check_texts(run)
        if run is None or (new and not satisfied):
            run = self._write_plan(run, new)
        else:
            with self._open() as warehouse, warehouse.transaction():
                make_current(warehouse, run.run_id)
        self._use_medians(run)
        if not run.calibrated:
            self._calibrate(run)
        return self._carry_out(run)

    # -- settling

    def _settle(self, wanted: RunSettings) -> tuple[RunSettings, StoredRun | None]:
        """The final settings (precision and generation), and the stored run that has them, if there is one."""
        # Opening to write makes the file, or brings its schema up to date, before any time goes into the model.
        with self._open() as warehouse:
            choices = list(DTYPES) if wanted.dtype == "auto" else [wanted.dtype]
            found = []
            for dtype in choices:
                generation = latest_generation(warehouse, replace(wanted, dtype=dtype))
                settings = replace(wanted, dtype=dtype, generation=generation)
                if run := find_run(warehouse, settings.identity):
                    found.append((settings, run))
        if found and not self.options.new_run:
            return max(found, key=lambda pair: pair[1].run_id)
        generation = max((settings.generation + 1 for settings, _ in found), default=0)
        dtype = self._faster_dtype() if wanted.dtype == "auto" else wanted.dtype
        return replace(wanted, dtype=dtype, generation=generation), None

    def _faster_dtype(self) -> str:
        """Time a batch in each precision for a second, and take the faster."""
        shape = (self.options.batch_size, self.options.context_length)
        tokens = (torch.arange(shape[0] * shape[1]) % 1_000).view(shape)
        seconds = {}
        for name, dtype in DTYPES.items():
            model = load_model(self.options.model, dtype)
            layer = [min(max(self.saes), model.n_layers - 1)]
            harvest_residuals(model, tokens, layer)
            started, n = time.perf_counter(), 0
            while time.perf_counter() - started < 1:
                harvest_residuals(model, tokens, layer)
                n += 1
            seconds[name] = (time.perf_counter() - started) / n
        faster = min(seconds, key=seconds.__getitem__)
        ratio = max(seconds.values()) / min(seconds.values())
        _say(f"Precision: {faster}, {ratio:.1f} times as fast here as the other choice of --dtype.")
        return faster

    @cached_property
    def model(self) -> LanguageModel:
        """The model, loaded at first use; layers and widths are checked then."""
        model = load_model(self.options.model, DTYPES[self.settings.dtype])
        check_saes(model, self.saes.values())
        for energy in self.energies:
            energy.check(model, list(self.saes))
        return model

    def _use_medians(self, run: StoredRun) -> None:
        """The run's norm medians are constants: those stored with it, whatever corpus is at hand now."""
        self.saes = {layer: replace(sae, norm_median=run.norm_medians[layer]) for layer, sae in self.saes.items()}

    # -- the plan

    def _new_documents(self, run: StoredRun | None) -> list[Document]:
        """Documents that the run does not hold yet; says which of the run's files were edited or removed."""
        if run is None:
            return list(self.documents.values())
        new = [document for sha256, document in self.documents.items() if sha256 not in run.documents]
        # By where they were found: a file of another corpus that happens to have the same name is no edit.
        here = {str(document.source.resolve()) for document in self.documents.values()}
        old = [document for sha256, document in run.documents.items() if sha256 not in self.documents]
        edited = [document.path for document in old if document.source in here]
        removed = [d.path for d in old if d.source not in here and not Path(d.source).exists()]
        for paths, what in ((edited, "edited"), (removed, "removed")):
            if paths:
                verb = "were" if len(paths) > 1 else "was"
                more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
                self._note(
                    f"{paths[0]}{more} {verb} {what} since: the run still holds the old text; --new-run starts afresh."
                )
        return new

    def _check_texts(self, run: StoredRun) -> None:
        """Raises UsageError when a text that is still to be read is gone or edited: before anything is changed."""
        pending = {context.document_id for group in self._left(run) for row in group.rows for context in row}
        for sha256, document in run.documents.items():
            if document.document_id in pending and sha256 not in self.documents:
                planned_document(sha256, Path(document.source))

    def _left(self, run: StoredRun) -> list[Group]:
        """Groups to process now: those not committed, up to the end of the one that reaches --max-tokens."""
        left, total = [], run.committed_tokens
        for group in run.groups:
            if group.group_id not in run.committed and total < (self.options.max_tokens or math.inf):
                left.append(group)
                total += group.n_tokens
        return left

    def _write_plan(self, run: StoredRun | None, new: Sequence[Document]) -> StoredRun:
        """Tokenise the new documents and append them to the run's plan, in one transaction."""
        model = self.model
        _say(f"Tokenising {len(new)} document{'s' * (len(new) != 1)} …")
        first_document, next_context = len(run.documents) if run else 0, run.n_contexts if run else 0
        existing = Counter((stored.category, stored.half) for stored in run.documents.values()) if run else None
        halves = assign_halves([(document.category, document.sha256) for document in new], existing)
        planned: list[PlannedDocument] = []
        details: dict[int, dict[str, Any]] = {}
        for document_id, document in enumerate(new, first_document):
            n_tokens = len(self._token_source.document(document))
            windows = cut(n_tokens, self.settings.context_length)
            contexts = tuple(
                Context(next_context + i, document_id, i, first, n) for i, (first, n) in enumerate(windows)
            )
            next_context += len(contexts)
            half = halves[document.sha256]
            planned.append(PlannedDocument(document_id, document.category, half, document.sha256, contexts))
            details[document_id] = {
                "path": document.path, "source": str(document.source.resolve()), "aliases": document.aliases,
                "n_bytes": document.n_bytes, "n_tokens": n_tokens,
                "n_dropped_tokens": n_tokens - sum(n for _, n in windows),
            }  # fmt: skip
        segment = run.segment_contexts if run else segment_length(next_context)
        groups = plan_groups(planned, segment, self.settings.seed, len(run.groups) if run else 0)
        if run is None and not groups:
            raise UsageError("The corpus is too short: no document has 3 tokens. Give more text.")
        self._note_plan(planned, details, appended=run is not None)
        medians = {} if run else self._norm_medians(planned, {d.document_id: d.sha256 for d in planned})
        with self._open() as warehouse, warehouse.transaction():
            if run:
                run_id = run.run_id
            else:
                saes = [sae.facts(medians[layer]) for layer, sae in self.saes.items()]
                add_gradient_columns(warehouse, [name for name in self.settings.energies if name not in ENERGIES])
                words = dict.fromkeys(self.options.energies)  # as make_energies goes through them
                energies = [energy.facts(word) for energy, word in zip(self.energies, words, strict=True)]
                run_id = create_run(warehouse, self.settings, model.facts(), saes, energies, segment, __version__)
            append_plan(warehouse, run_id, planned, details, groups)
            make_current(warehouse, run_id)
            stored_run = find_run(warehouse, self.settings.identity)
        assert stored_run is not None
        return stored_run

    def _note_plan(
        self, planned: Sequence[PlannedDocument], details: Mapping[int, Mapping[str, Any]], appended: bool
    ) -> None:
        dropped = sum(own["n_dropped_tokens"] for own in details.values())
        if dropped:
            self._note(f"{dropped:,} tokens in document ends of fewer than {self.settings.min_tail} are left out.")
        sizes = Counter((document.category, document.half) for document in planned if document.contexts)
        if small := sorted({category for (category, _), size in sizes.items() if size <= MIN_MATES}):
            lacking = ", ".join(small)
            if appended:
                what = f"the tokens of the new documents do not count in it for {lacking}"
            else:
                what = f"z, p and q are NULL for {lacking}"
            self._note(f"The within-context test needs {MIN_MATES + 1} documents in a half of a category; {what}.")

    def _norm_medians(self, planned: Sequence[PlannedDocument], hashes: Mapping[int, str]) -> dict[int, float]:
        """The norm median of each layer: the SAE's own, else from a forward pass over the corpus at hand."""
        medians = {layer: sae.norm_median for layer, sae in self.saes.items() if sae.norm_median is not None}
        if missing := [layer for layer in self.saes if layer not in medians]:
            _say(f"Measuring the median norm at layer {', '.join(map(str, missing))} …")
            sample = sample_contexts(planned, NORM_MEDIAN_TOKENS, self.settings.seed)
            texts = (self._token_source.context(context, hashes[context.document_id]) for context in sample)
            medians |= norm_medians(self.model, texts, missing)
        return medians

    @cached_property
    def _token_source(self) -> TokenSource:
        return TokenSource(self.model, self.documents)

    def _read_tokens(self, run: StoredRun, contexts: Sequence[Context]) -> dict[int, NDArray[np.int32]]:
        """Vocabulary ids by context_id."""
        stored = {document.document_id: document for document in run.documents.values()}
        tokens = {}
        for context in contexts:
            document = stored[context.document_id]
            tokens[context.context_id] = self._token_source.context(context, document.sha256, Path(document.source))
        return tokens

    # -- carrying out

    def _calibrate(self, run: StoredRun) -> None:
        """Store mean and spread of every feature's decoder gradient over a seeded sample of the corpus.

        The sample is drawn from the plan alone, so that it is the same wherever a run was interrupted.
        """
        _say("Calibrating on a sample …")
        contexts = [context for group in run.groups for row in group.rows for context in row]
        categories = {document.document_id: document for document in run.documents.values()}
        by_document: dict[int, list[Context]] = {}
        for context in sorted(contexts, key=lambda context: context.context_id):
            by_document.setdefault(context.document_id, []).append(context)
        planned = [
            PlannedDocument(id_, categories[id_].category, categories[id_].half, categories[id_].sha256, tuple(own))
            for id_, own in by_document.items()
        ]
        sample = sample_contexts(planned, CALIBRATION_TOKENS, self.settings.seed)
        tokens = self._read_tokens(run, sample)
        readings = list(self._reader.read([(context, tokens[context.context_id]) for context in sample]))
        frames = []
        for layer, sae in self.saes.items():
            for energy in self.energies:
                mean, sd = sample_moments(readings, layer, sae.W_dec, energy.name)
                frame = pl.DataFrame({"feature": np.arange(sae.d_sae, dtype=np.int32), "g_mean": mean, "g_sd": sd})
                frames.append(frame.with_columns(run_id=pl.lit(run.run_id), layer=layer, energy=pl.lit(energy.name)))
        with self._open() as warehouse, warehouse.transaction():
            for sae in self.saes.values():
                warehouse.append("activation_quartiles", quartile_rows(sae).with_columns(run_id=pl.lit(run.run_id)))
            warehouse.append("calibration", pl.concat(frames))

    @cached_property
    def _reader(self) -> Reader:
        return Reader(
            self.model, self.saes, self.energies, self.options.batch_size, self.options.probes, self.options.seed
        )

    def _carry_out(self, run: StoredRun) -> IngestSummary:
        """Process and commit what is left of the plan, then finish."""
        left = self._left(run)
        committed: list[Group] = []
        started = time.monotonic()
        interrupted = False
        if left:
            try:
                self._process(run, left, committed)
            except KeyboardInterrupt:
                interrupted = True
                _say("Interrupted: finishing the statistics of what is committed …")
                # Ctrl-C may have come between a commit and its being noted here: the file knows.
                with self._open() as warehouse:
                    stored = find_run(warehouse, self.settings.identity)
                assert stored is not None
                committed = [group for group in left if group.group_id in stored.committed]
        seconds = time.monotonic() - started
        n_tokens = sum(group.n_tokens for group in committed)
        started = time.monotonic()
        if run.stats_groups != len(run.committed) + len(committed):
            finish(self._open, run.run_id, {layer: sae.W_dec for layer, sae in self.saes.items()})
        return IngestSummary(
            db=str(self.options.db),
            run_id=run.run_id,
            model=self.options.model,
            dtype=self.settings.dtype,
            documents=len(run.documents),
            tokens=run.committed_tokens + n_tokens,
            planned_tokens=sum(group.n_tokens for group in run.groups),
            new_tokens=n_tokens,
            new_groups=len(committed),
            seconds=seconds,
            tokens_per_second=n_tokens / seconds if n_tokens else None,
            finish_seconds=time.monotonic() - started,
            interrupted=interrupted,
            notes=self.notes,
        )

    def _process(self, run: StoredRun, groups: Sequence[Group], committed: list[Group]) -> None:
        """Run the groups; `committed` grows as their transactions succeed."""
        with self._open() as warehouse:
            histogram_plan = read_histogram_plan(warehouse, run.run_id, self.saes, list(self.settings.energies))
        builder = GroupBuilder(
            run.run_id, self.settings.context_length, self._reader, histogram_plan, self.options.store_gradients
        )
        pending: deque[GroupTables] = deque()
        every = 0.5 if sys.stderr.isatty() else 30
        n_tokens = sum(group.n_tokens for group in groups)
        with tqdm(total=n_tokens, unit="token", unit_scale=True, mininterval=every, desc="Ingest") as bar:
            for group in groups:
                contexts = [context for row in group.rows for context in row]
                tokens = self._read_tokens(run, contexts)
                pending.append(builder.build(group, tokens, on_tokens=bar.update))
                self._commit(run, pending, committed, wait=len(pending) >= MAX_PENDING_GROUPS)
            self._commit(run, pending, committed, wait=True)

    def _commit(self, run: StoredRun, pending: deque[GroupTables], committed: list[Group], wait: bool) -> None:
        """Commit waiting groups, each in a transaction of its own.

        While another process holds the file they stay pending, unless `wait`.
        """
        told = False
        while pending:
            try:
                with Warehouse(self.options.db, writable=True, wait_seconds=0.2) as warehouse:
                    while pending:
                        store_group(warehouse, run.run_id, pending[0])
                        committed.append(pending.popleft().group)
            except LockedError as error:
                if not wait:
                    return
                if not told:
                    _say(f"Waiting to commit: {error}")
                told = True
                time.sleep(0.5)

    def _open(self) -> Warehouse:
        return Warehouse(self.options.db, writable=True)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        _say(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
