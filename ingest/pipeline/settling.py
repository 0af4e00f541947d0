"""Options in, what they settle on out: a run's final settings, the stored run that has them, and what it reads with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from energy_lens.ingest.corpus import Document
from energy_lens.ingest.energies.base import Energy
from energy_lens.ingest.model.bos import adds_bos, set_bos, wants_bos
from energy_lens.ingest.model.configuration import check_window, configuration_sha256
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import (
    DTYPES,
    ModelOnDemand,
    is_folder,
    load_tokenizer,
    locate,
    tokenizer_sha256,
)
from energy_lens.ingest.model.precision import load_in, name_of
from energy_lens.ingest.model.window import settle_context_length
from energy_lens.ingest.pipeline.options import IngestOptions
from energy_lens.ingest.reading import Instruments
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import check_saes
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.query import say_left_rows
from energy_lens.warehouse.runs import RunSettings, StoredDocument, StoredRun, find_run, latest_generation


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
