"""A seeded sample of the plan in, the bins of mutual information out: mean and spread of every feature's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from energy_lens.ingest.reading import ContextReading
from energy_lens.ingest.statistics.stream import products, quadratic_form

#: Tokens of the calibration sample.
CALIBRATION_TOKENS = 4_096


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
