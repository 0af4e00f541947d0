"""An SAE's folder in, a copy of it out: registered for a model in the user's cache, or exported in another format.

A registered SAE is a folder in SAELens v6 format below `cache_folder()/saes/MODEL`, its constant factors folded in,
its norm median measured if asked for. `elw ingest --sae` takes it by its path, and any other readable folder as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from energy_lens.errors import UsageError
from energy_lens.ingest.contexts import of_equal_length, planned_alone
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.model.bos import settle_bos
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.residuals import NORM_MEDIAN_PLACES, NORM_MEDIAN_TOKENS, norm_medians
from energy_lens.ingest.model.window import default_context_length
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.choosing import check_saes, registered_folder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.model_names import trained_on
from energy_lens.ingest.sae.saving import save_sae, save_sparsify
from energy_lens.warehouse.files import is_abandoned
from energy_lens.warehouse.locks import LOCK, claimed_folder
from energy_lens.warehouse.plan import sample_contexts


def import_sae(
    folder: Path,
    model_name: str,
    output: Path | None = None,
    layer: int | None = None,
    activation_scale: float | None = None,
    calibrate: Sequence[Path] = (),
) -> Path:
    """Register an SAE for a model; returns the folder of the copy.

    output: where to write it instead of the cache; a new or empty folder. layer, activation_scale: as for `load_sae`.
    calibrate: text whose median ‖x‖ the SAE is to carry; else it keeps its own, or ingest measures one.
    Raises UsageError for an SAE that cannot be read or does not fit the model.
    """
    return register(load_sae(folder, activation_scale, layer), model_name, output, calibrate)


def register(
    sae: SparseAutoencoder,
    model_name: str,
    output: Path | None = None,
    calibrate: Sequence[Path] = (),
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Register an SAE that was read; as `import_sae`. origin: what its copy is to say of where it came from."""
    target = output or registered_folder(model_name) / f"layer_{sae.layer}-{sae.sha256[:12]}"
    if output is not None:
        check_free(output)
    with claimed_folder(target, "elw sae import"):
        documents = discover(calibrate) if calibrate else []
        model = load_model(model_name)
        check_saes(model, [sae])
        settle_bos(model, "auto", [sae])
        if documents:
            texts = list(_sample(model, documents))
            if not texts:
                raise UsageError(
                    f"{calibrate[0]} is too short to calibrate on: no document has 3 tokens. Give more text."
                )
            batches = of_equal_length(texts, NORM_MEDIAN_PLACES)
            sae = replace(sae, norm_median=norm_medians(model, batches, {sae.layer: sae.site})[sae.layer])
        origin = {"imported_sha256": sae.sha256, "imported_model_name": trained_on(sae), **(origin or {})}
        save_sae(replace(sae, model_name=model_name, metadata={**sae.metadata, **origin}), target)
    return target


def export_sae(folder: Path, form: str, output: Path, half: bool = False) -> Path:
    """Write an SAE in another format, saelens or sparsify; returns the folder.

    half: weights in float16. Raises UsageError for an SAE that the format cannot hold, or an output that is not free.
    """
    sae = load_sae(folder)
    check_free(output)
    dtype = torch.float16 if half else torch.float32
    with claimed_folder(output, "elw sae export"):
        check_free(output)  # once more: another export may have come first
        if form == "sparsify":
            return save_sparsify(sae, output, dtype)
        save_sae(sae, output, dtype)
    return output


def check_free(output: Path) -> None:
    """Raises UsageError unless a folder can be written there without touching anything."""
    # What a killed writer left under a scratch name is cleared away by the next one (warehouse.files).
    if output.exists() and not (
        output.is_dir() and all(is_abandoned(path) or path.name == LOCK for path in output.iterdir())
    ):
        raise UsageError(f"{output} exists already: choose another --output, or remove it.")


def _sample(model: LanguageModel, documents: Sequence[Document]) -> Iterator[NDArray[np.int32]]:
    """Token ids of a seeded sample of contexts, as long as those of an ingest, in turn from each category."""
    source, planned = planned_alone(model, documents, default_context_length(model))
    for context in sample_contexts(planned, NORM_MEDIAN_TOKENS, seed=0):
        yield source.context(context, planned[context.document_id].sha256)
