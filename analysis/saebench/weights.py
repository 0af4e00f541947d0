"""An SAE's weights and its features' densities in, SAEBench's figures that need no model out.

Biases and rows are those that elw works with: constant factors are folded into them (`ingest/sae/formats.py`). Cosines
do not notice.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from energy_lens.ingest.sae.autoencoder import SparseAutoencoder

#: Rows whose cosines with all others are held at once.
ROWS_AT_ONCE = 1_024

#: Densities above which a feature counts as frequent, by the name of the figure.
FREQUENT = {"freq_over_1_percent": 0.01, "freq_over_10_percent": 0.1}


@torch.no_grad()
def weight_figures(sae: SparseAutoencoder) -> dict[str, NDArray[np.float64]]:
    """[d_sae] of each figure; the cosine of encoder and decoder is NaN where they are of different widths."""
    encoder, decoder = sae.encoder_rows.float(), sae.W_dec.float()
    alike = encoder.shape == decoder.shape
    between = cosine_similarity(encoder, decoder) if alike else torch.full((sae.d_sae,), torch.nan)
    figures = {
        "encoder_bias": sae.b_enc,
        "encoder_norm": encoder.norm(dim=1),
        "encoder_decoder_cosine_sim": between,
        "max_decoder_cosine_sim": largest_cosines(decoder),
        "max_encoder_cosine_sim": largest_cosines(encoder),
    }
    return {name: values.double().numpy() for name, values in figures.items()}


def largest_cosines(rows: Tensor) -> Tensor:
    """[n] the largest cosine of each row [n, d] with any other one; −inf where there is no other one."""
    unit = normalize(rows, dim=1)
    largest = unit.new_empty(len(unit))
    for start in range(0, len(unit), ROWS_AT_ONCE):
        cosines = unit[start : start + ROWS_AT_ONCE] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)
        largest[start : start + ROWS_AT_ONCE] = cosines.max(dim=1).values
    return largest


def misc_figures(densities: NDArray[np.float64], of_weights: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Shares of features by how often they fire, and means over features."""
    figures = {
        "average_max_encoder_cosine_sim": float(of_weights["max_encoder_cosine_sim"].mean()),
        "average_max_decoder_cosine_sim": float(of_weights["max_decoder_cosine_sim"].mean()),
        "frac_alive": float((densities > 0).mean()),
    }
    total = densities.sum()
    for name, share in FREQUENT.items():
        frequent = densities > share
        figures[name] = float(frequent.mean())
        figures[f"normalized_{name}"] = float(densities[frequent].sum() / total) if total > 0 else 0.0
    return figures
