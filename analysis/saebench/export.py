"""`elw export --format saebench`: a warehouse in, a folder with SAEBench's core results of each SAE of its run out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.saebench.measuring import measure
from energy_lens.analysis.saebench.results import core_results, file_name, names, told
from energy_lens.analysis.saebench.sample import Sample, take_sample
from energy_lens.errors import require
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import check_saes
from energy_lens.ingest.sae.evaluation import documents_seen
from energy_lens.warehouse.export_folder import export_folder
from energy_lens.warehouse.exporting import Exported

#: Contexts that are measured unless told otherwise.
CONTEXTS = 64


def export_saebench(
    db: Path,
    output: Path,
    features: Sequence[str] | None = None,
    contexts: int = CONTEXTS,
    layers: Sequence[int] | None = None,
) -> Exported:
    """Measure the SAEs of the current run, and write a file of each.

    contexts: of the run, at most so many; layers: whose SAEs, else all of the run's. Results of other SAEs that an
    earlier export wrote into the folder stay there.
    Raises UsageError for a choice of features, of which there is none here, and what `CurrentRun` and `export_folder`
    raise.
    """
    require(features is None, "saebench is about whole SAEs, not about features: leave out --features.")
    current = CurrentRun(db)
    chosen = current.chosen(layers, current.facts.layers, "layer")
    saes = [current.sae(layer) for layer in chosen]
    names_of_files = [file_name(*names(sae, current.facts)) for sae in saes]
    sample = take_sample(current, saes, contexts)
    with export_folder(output, "saebench", told(saes, current.facts), adds=True) as folder:
        for name in names_of_files:
            folder.file(name).touch()  # what cannot be written shall not cost a measurement first
        model = current.load_model()
        check_saes(model, saes)
        measurements = measure(model, saes, sample.contexts)
        for sae, measurement, name in zip(saes, measurements, names_of_files, strict=True):
            text = json.dumps(core_results(sae, measurement, sample, current.facts), indent=2, allow_nan=False)
            (folder.root / name).write_text(f"{text}\n", encoding="utf-8")
        folder.notes += _notes(saes, sample)
    return Exported([output / name for name in names_of_files], folder.notes)


def _notes(saes: Sequence[SparseAutoencoder], sample: Sample) -> list[str]:
    """What a reader of the figures must know."""
    notes = [
        f"Measured on {len(sample.contexts):,} of the run's {sample.n_of_run:,} contexts, {sample.n_tokens:,} tokens "
        "(--contexts), without first tokens and those of massive norm.",
        "explained_variance and mse are as SAEBench 0.6.0 computes them, which is not what they are called: "
        "eval_result_unstructured.conventional has what is meant.",
    ]
    if sample.seen_are_in:
        notes.append(
            "The SAEs were trained on all of the run's documents, or chosen by them: the figures flatter them."
        )
    elif sample.n_seen:
        notes.append(
            f"{sample.n_seen:,} contexts were left out: the SAEs were trained on their documents or chosen by them."
        )
    if silent := [str(sae.layer) for sae in saes if documents_seen(sae) is None]:
        notes.append(
            f"Which documents the SAEs of layer {', '.join(silent)} were trained on is not known: these may be some."
        )
    return notes
