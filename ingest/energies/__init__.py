"""Energies: what can be read from a model's pass as an energy per token, with its gradient at every hooked layer.

This face hands on what an energy from outside the package needs (Energy, ForwardPass, Reading) and the package's own.
"""

from energy_lens.ingest.energies.attention import AttentionEnergy, attention_scores
from energy_lens.ingest.energies.base import Energy, Reading, discrete_gradient
from energy_lens.ingest.energies.forward import ForwardPass, OutputLosses, run_forward
from energy_lens.ingest.energies.hopfield import Hopfield
from energy_lens.ingest.energies.lenses import LogitLens, TunedLens
from energy_lens.ingest.energies.native import NativeEnergy
from energy_lens.ingest.energies.nll import NegativeLogLikelihood
from energy_lens.ingest.energies.registry import ENERGIES, make_energies

__all__ = [
    "ENERGIES", "AttentionEnergy", "Energy", "ForwardPass", "Hopfield", "LogitLens", "NativeEnergy",
    "NegativeLogLikelihood", "OutputLosses", "Reading", "TunedLens", "attention_scores", "discrete_gradient",
    "make_energies", "run_forward",
]  # fmt: skip
