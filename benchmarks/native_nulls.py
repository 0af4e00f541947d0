"""Models and dictionaries in which nothing was learnt, for benchmarks/native_study.py: folders as those of real ones.

`untrained` is an energy transformer of the same configuration and tokenizer whose weights are as training begins with
them; `random_dictionary` has an SAE's size, k, bias and lengths of rows, and random directions to write along and read.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from energy_lens.analysis.native.run import untrained as untrained_model
from energy_lens.ingest.model.loading import load_model, locate
from energy_lens.ingest.sae.choosing import shipped_folder, shipped_layers
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae


def untrained(model: str, folder: Path, seed: int) -> None:
    """Write a model of the same configuration whose weights were drawn by the seed."""
    source, _ = locate(model)
    untrained_model(load_model(model), seed).module.save_pretrained(folder)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)


def random_dictionary(model: str, folder: Path, seed: int) -> None:
    """Write an SAE with random directions for each that is shipped for the model."""
    for layer in shipped_layers(model):
        sae = load_sae(shipped_folder(model, layer))
        generator = torch.Generator().manual_seed(seed + layer)
        directions = functional.normalize(torch.randn(sae.W_dec.shape, generator=generator), dim=1)
        drawn = replace(
            sae, W_dec=directions * sae.W_dec.norm(dim=1, keepdim=True), W_enc=directions.T.contiguous(),
            b_enc=torch.zeros_like(sae.b_enc), quartiles=None, metadata={}, sha256="", source="",
        )  # fmt: skip
        save_sae(drawn, folder / f"layer_{layer}")
