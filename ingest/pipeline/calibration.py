"""A seeded sample of the plan in, what every group is measured by out.

That is the bins of mutual information (mean and spread of every feature's gradient), and which decoder rows are the
references of the test of the direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from energy_lens.console import say
from energy_lens.ingest.contexts import TokenSource
from energy_lens.ingest.reading import ContextReading, Instruments
from energy_lens.ingest.statistics.directions import reference_rows
from energy_lens.ingest.statistics.histograms import quartile_rows
from energy_lens.ingest.statistics.stream import products, quadratic_form
from energy_lens.warehouse.plan import Context, PlannedDocument, sample_contexts
from energy_lens.warehouse.runs import StoredRun, open_again

#: Tokens of the calibration sample.
CALIBRATION_TOKENS = 4_096


def calibrate(db: Path, run: StoredRun, instruments: Instruments, source: TokenSource) -> None:
    """Store mean and spread of every feature's decoder gradient over a sample, the SAEs' quartiles, the references.

    The sample is drawn from the plan alone, so that it is the same wherever a run was interrupted.
    Raises UsageError when the text of the sample is no longer there.
    """
    say("Calibrating on a sample …")
    sample = sample_contexts(planned_documents(run), CALIBRATION_TOKENS, instruments.seed)
    token_ids = source.contexts_of(run.by_id, sample)
    reader = instruments.reader()
    readings = list(reader.read([(context, token_ids[context.context_id]) for context in sample]))
    calibration = calibration_rows(run.run_id, readings, instruments)
    with open_again(db, run) as warehouse, warehouse.transaction():
        for sae in instruments.saes.values():
            warehouse.append("activation_quartiles", quartile_rows(sae).with_columns(run_id=pl.lit(run.run_id)))
            references = reference_rows(sae, instruments.seed)
            warehouse.append("reference_rows", references.with_columns(run_id=pl.lit(run.run_id)))
        warehouse.append("calibration", calibration)


def planned_documents(run: StoredRun) -> list[PlannedDocument]:
    """The documents of a run, with their contexts in order; those without any context are left out."""
    by_id = {document.document_id: document for document in run.documents.values()}
    contexts = (context for group in run.groups for row in group.rows for context in row)
    by_document: dict[int, list[Context]] = {}
    for context in sorted(contexts, key=lambda context: context.context_id):
        by_document.setdefault(context.document_id, []).append(context)
    return [
        PlannedDocument(id_, by_id[id_].category, by_id[id_].half, by_id[id_].sha256, tuple(of_document))
        for id_, of_document in by_document.items()
    ]


def calibration_rows(run_id: int, readings: Sequence[ContextReading], instruments: Instruments) -> pl.DataFrame:
    """Rows of `calibration`: one of each layer, energy and feature."""
    frames = []
    for layer, sae in instruments.saes.items():
        for energy in instruments.energies:
            mean, sd = sample_moments(readings, layer, sae.W_dec, energy.name)
            frame = pl.DataFrame({"feature": np.arange(sae.d_sae, dtype=np.int32), "g_mean": mean, "g_sd": sd})
            frames.append(frame.with_columns(run_id=pl.lit(run_id), layer=layer, energy=pl.lit(energy.name)))
    return pl.concat(frames)


def sample_moments(
    readings: Sequence[ContextReading], layer: int, rows: torch.Tensor, energy: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of g over the included tokens of a sample, by feature: two [d_sae]."""
    gradients = torch.cat(
        [
            reading.layers[layer].decoder_gradients(energy)[torch.from_numpy(reading.layers[layer].included)]
            for reading in readings
        ]
    ).double()
    centred = gradients - gradients.mean(0)
    covariance = centred.T @ centred / len(gradients)
    return -products(rows, gradients.mean(0)).numpy(), quadratic_form(rows, covariance).sqrt().numpy()
