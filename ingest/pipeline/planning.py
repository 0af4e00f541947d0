"""The documents at hand and the run as it is stored in, its plan out: documents, contexts and groups, what is left.

A run that exists keeps its plan; documents that it does not hold yet are appended as new groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from energy_lens.console import say, some_of
from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import TokenSource, check_planned, of_equal_length
from energy_lens.ingest.corpus import Document
from energy_lens.ingest.model.bos import bos_note
from energy_lens.ingest.model.residuals import NORM_MEDIAN_PLACES, NORM_MEDIAN_TOKENS, norm_medians
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.ingest.reading import Instruments
from energy_lens.ingest.sources import is_gone, table_of
from energy_lens.ingest.statistics.significance import MIN_MATES
from energy_lens.version import __version__
from energy_lens.warehouse.database import Warehouse
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
    current_run,
    find_run,
    make_current,
    open_again,
)
from energy_lens.warehouse.shards import Shard, deal


class Notes:
    """Sentences that a user should know of a run: each is said at once, and kept for the summary."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            self.sentences.append(sentence)
            say(sentence)


class Plan(NamedTuple):
    """What a run is to do, or what is appended to it."""

    documents: list[PlannedDocument]
    details: dict[int, dict[str, Any]]  #: document_id: the rest of its row of `documents`, and its aliases
    groups: list[Group]
    segment_contexts: int  #: contexts of a segment


def bring_up_to_date(
    options: IngestOptions,
    settings: RunSettings,
    run: StoredRun | None,
    documents: Mapping[str, Document],
    instruments: Instruments,
    source: TokenSource,
    notes: Notes,
) -> StoredRun:
    """The run with the documents at hand in its plan; it is the current one if it has anything to show."""
    notes.add(misplaced_texts(run, documents))
    if run is None:
        return write_plan(options, settings, None, list(documents.values()), instruments, source, notes)
    new = new_documents(run, documents)
    notes.add(changed_files(run, documents))
    # What is not going to be read now is not planned either: its text may be another by then.
    if run.done_tokens < (options.max_tokens or math.inf):
        check_texts(run, groups_left(run, options.max_tokens, options.shard), documents)
        if new and options.shard:
            notes.add([unplanned_note(new)])
        elif new:
            return write_plan(options, settings, run, new, instruments, source, notes)
    with open_again(options.db, run) as warehouse, warehouse.transaction():
        notes.add(show_run(warehouse, run.run_id, run.stats_groups > 0))
    return run


def show_run(warehouse: Warehouse, run_id: int, has_statistics: bool) -> list[str]:
    """Make a run current once it has statistics, or while there is no other; a sentence where it is not made so.

    Call within a transaction.
    """
    current = current_run(warehouse)
    if has_statistics or current in (None, run_id):
        make_current(warehouse, run_id)
        return []
    return [
        f"Run {current} stays the current one, which efas and the other views show, until run {run_id} has statistics."
    ]


# ------------------------------------------------------------------------------------------------ a run that exists


def new_documents(run: StoredRun, documents: Mapping[str, Document]) -> list[Document]:
    """Those of the documents at hand (by sha256) that the run does not hold yet."""
    return [document for sha256, document in documents.items() if sha256 not in run.documents]


def changed_files(run: StoredRun, documents: Mapping[str, Document]) -> list[str]:
    """A sentence on the run's files that were edited, and one on those that were removed, if there are any."""
    # By where they were found: a file of another corpus that happens to have the same name is no edit.
    sources = {document.source.location for document in documents.values()}
    tables = {table_of(source) for source in sources} - {None}
    old = [document for sha256, document in run.documents.items() if sha256 not in documents]
    edited = [document.path for document in old if document.source in sources]
    # A row that a table at hand no longer has is gone as a file is that is no longer there.
    gone = [d for d in old if d.source not in sources and (table_of(d.source) in tables or is_gone(d.source))]
    removed = [document.path for document in gone]
    sentences = []
    for paths, what in ((edited, "edited"), (removed, "removed")):
        if paths:
            verb = "were" if len(paths) > 1 else "was"
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            sentences.append(
                f"{paths[0]}{more} {verb} {what} since: the run still holds the old text; --new-run starts afresh."
            )
    return sentences


def misplaced_texts(run: StoredRun | None, documents: Mapping[str, Document]) -> list[str]:
    """A sentence on texts that moved to another category since, and one on copies that count in another than theirs.

    Equal texts are one document, and a run keeps the category in which it read it.
    """
    moved, copied = [], []
    for sha256, document in documents.items():
        stored = run.documents.get(sha256) if run else None
        counts_in = stored.category if stored else document.category
        places = [
            (document.path, document.category),
            *zip(document.aliases, document.alias_categories, strict=True),
        ]
        elsewhere = [f"{path} (of {category}, in {counts_in})" for path, category in places if category != counts_in]
        if len(elsewhere) == len(places):
            moved.append(elsewhere[0])
        else:
            copied += elsewhere
    sentences = []
    if moved:
        are = f"{len(moved):,} texts are" if len(moved) > 1 else "1 text is"
        sentences.append(
            f"{are} of another category now and still counted in the old one: {_first_of(moved)}; --new-run starts "
            "afresh, and elw sql 'FROM documents' shows what the run has."
        )
    if copied:
        are = f"{len(copied):,} copies are" if len(copied) > 1 else "1 copy is"
        sentences.append(
            f"{are} counted in another category alone, since equal texts are one document: {_first_of(copied)}; "
            "elw sql 'FROM document_aliases' shows those that the run has."
        )
    return sentences


def _first_of(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def groups_left(run: StoredRun, max_tokens: int | None, shard: Shard | None = None) -> list[Group]:
    """Groups to process now: those not finished, up to the end of the one that reaches max_tokens.

    shard: of this part of the plan alone. What counts for max_tokens is then the plan as a whole, so that it means the
    same in every shard, however far each has come.
    """
    if shard:
        return _left_in_shard(run, max_tokens, shard)
    left, total = [], run.done_tokens
    for group in run.groups:
        if group.group_id not in run.done and total < (max_tokens or math.inf):
            left.append(group)
            total += group.n_tokens
    return left


def _left_in_shard(run: StoredRun, max_tokens: int | None, shard: Shard) -> list[Group]:
    of_shards = deal(((group.category, group.half, group.n_tokens) for group in run.groups), shard.of)
    left, total = [], 0
    for group, of_shard in zip(run.groups, of_shards, strict=True):
        if total >= (max_tokens or math.inf):
            break
        total += group.n_tokens
        if of_shard == shard.index and group.group_id not in run.done:
            left.append(group)
    return left


def unplanned_note(new: Sequence[Document]) -> str:
    """A sentence on documents at hand that a shard leaves out, since its plan is the other shards' too."""
    were = f"{len(new):,} documents are" if len(new) > 1 else "1 document is"
    return (
        f"{were} not in the plan and left out of this shard, such as {new[0].path}: --plan-only appends what is new, "
        "before the warehouse is copied."
    )


def check_texts(run: StoredRun, groups: Sequence[Group], documents: Mapping[str, Document]) -> None:
    """Raises UsageError when a text that these groups need is gone or edited: before anything is changed."""
    needed = {context.document_id for group in groups for row in group.rows for context in row}
    stored = run.documents.items()
    check_planned(one for sha256, one in stored if one.document_id in needed and sha256 not in documents)


# ------------------------------------------------------------------------------------------------ new documents


def write_plan(
    options: IngestOptions,
    settings: RunSettings,
    run: StoredRun | None,
    new: Sequence[Document],
    instruments: Instruments,
    source: TokenSource,
    notes: Notes,
) -> StoredRun:
    """Tokenise the new documents and append them to the run's plan, in one transaction; without a run, create it.

    Raises UsageError for a model that the instruments do not fit, and for a new run without a context; NotFiniteError
    for a model whose numbers are not finite, before a run is created.
    """
    model = instruments.model.load()
    say(f"Tokenising {len(new)} document{'s' * (len(new) != 1)} …")
    plan = lay_plan(run, new, source, settings)
    if run is None and not plan.groups:
        raise UsageError("The corpus is too short: no document has 3 tokens. Give more text.")
    if run is None and (note := bos_note(model)):
        notes.add([note])
    notes.add(plan_notes(plan, settings.min_tail, appended=run is not None))
    if run is None and "nll" in settings.energies and not settings.probes:
        say("Roles will rest on first order. --probes 3 predicts ablations far better, for three more backward passes.")
    medians = {} if run else measured_medians(plan.documents, instruments, source)
    if run is None:
        check_numbers(plan.documents, instruments.with_medians(medians), source)
    with (
        open_again(options.db, run) if run else Warehouse(options.db, writable=True, create=False) as warehouse,
        warehouse.transaction(),
    ):
        if run:
            run_id = run.run_id
        else:
            saes = [sae.facts(medians[layer]) for layer, sae in instruments.saes.items()]
            energies = [energy.facts() for energy in instruments.energies]
            add_gradient_columns(warehouse, list(settings.energies))
            run_id = create_run(warehouse, settings, model.facts(), saes, energies, plan.segment_contexts, __version__)
        append_plan(warehouse, run_id, plan.documents, plan.details, plan.groups)
        del plan  # it comes back from the file, and twice in memory is much for a large corpus
        sentences = show_run(warehouse, run_id, run is not None and run.stats_groups > 0)
        stored_run = find_run(warehouse, settings.identity)
    notes.add(sentences)
    assert stored_run is not None
    return stored_run


def lay_plan(run: StoredRun | None, new: Sequence[Document], source: TokenSource, settings: RunSettings) -> Plan:
    """Cut the new documents into contexts and put these in order; ids go on where the run's end."""
    next_document, next_context = (len(run.documents), run.n_contexts) if run else (0, 0)
    existing = Counter((stored.category, stored.half) for stored in run.documents.values()) if run else None
    halves = assign_halves([(document.category, document.sha256) for document in new], existing)
    source.add(new)
    planned: list[PlannedDocument] = []
    details: dict[int, dict[str, Any]] = {}
    for document_id, document in enumerate(new, next_document):
        n_tokens = source.n_tokens(document)
        windows = cut(n_tokens, settings.context_length, settings.bos)
        contexts = tuple(Context(next_context + i, document_id, i, first, n) for i, (first, n) in enumerate(windows))
        next_context += len(contexts)
        half = halves[document.sha256]
        planned.append(PlannedDocument(document_id, document.category, half, document.sha256, contexts))
        details[document_id] = {
            "path": document.path, "source": document.source.location, "aliases": document.aliases,
            "n_bytes": document.n_bytes, "n_tokens": n_tokens,
            "n_dropped_tokens": n_tokens - sum(n - settings.bos for _, n in windows),
        }  # fmt: skip
    segment = run.segment_contexts if run else segment_length(next_context)
    groups = plan_groups(planned, segment, settings.seed, len(run.groups) if run else 0)
    return Plan(planned, details, groups, segment)


def plan_notes(plan: Plan, min_tail: int, appended: bool) -> list[str]:
    """Sentences on what of the new documents is left out, and on what will not be tested for want of mates."""
    sentences = []
    dropped = sum(of_document["n_dropped_tokens"] for of_document in plan.details.values())
    if dropped:
        sentences.append(f"{dropped:,} tokens in document ends of fewer than {min_tail} are left out.")
    sizes = Counter((document.category, document.half) for document in plan.documents if document.contexts)
    if small := sorted({category for (category, _), size in sizes.items() if size <= MIN_MATES}):
        lacking = some_of(small)
        if appended:
            what = f"the tokens of the new documents do not count in it for {lacking}"
        else:
            what = f"z, p and q are NULL for {lacking}"
        where = "; elw sql 'FROM documents' shows categories and halves" if lacking != ", ".join(small) else ""
        sentences.append(
            f"The within-context test needs {MIN_MATES + 1} documents in a half of a category; {what}{where}."
        )
    return sentences


def check_numbers(planned: Sequence[PlannedDocument], instruments: Instruments, source: TokenSource) -> None:
    """Read a context of each category, for nothing but what that raises before a run is there.

    Raises NotFiniteError where the model's numbers are not finite on them.
    """
    hashes = {document.document_id: document.sha256 for document in planned}
    sample = sample_contexts(planned, 1, instruments.seed)[: instruments.batch_size]
    for _ in instruments.reader().read([(one, source.context(one, hashes[one.document_id])) for one in sample]):
        pass


def measured_medians(
    planned: Sequence[PlannedDocument], instruments: Instruments, source: TokenSource
) -> dict[int, float]:
    """The norm median of each layer: the SAE's own, else from a forward pass over a sample of the plan."""
    medians = {layer: sae.norm_median for layer, sae in instruments.saes.items() if sae.norm_median is not None}
    if missing := [layer for layer in instruments.saes if layer not in medians]:
        say(f"Measuring the median norm at layer {', '.join(map(str, missing))} …")
        hashes = {document.document_id: document.sha256 for document in planned}
        sample = sample_contexts(planned, NORM_MEDIAN_TOKENS, instruments.seed)
        token_ids = [source.context(context, hashes[context.document_id]) for context in sample]
        medians |= norm_medians(
            instruments.model.load(),
            of_equal_length(token_ids, NORM_MEDIAN_PLACES),
            {layer: instruments.saes[layer].site for layer in missing},
        )
    return medians
