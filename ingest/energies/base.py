"""What an energy is: one small provider, from a forward pass to energies per token and gradients at every hooked layer.

A provider's `read` returns both at once, because the softmax that gives an energy also gives its gradient. The
package's own are a file each beside this one; one from outside takes the same path (docs/how-to/add-an-energy.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.energies.forward import ForwardPass
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder


class Reading(NamedTuple):
    """Energies and gradients of one batch."""

    values: dict[int | None, Tensor]  #: layer (None: not read at a layer): E [batch, position] float32
    gradients: dict[int, Tensor]  #: layer: ∂E/∂x [batch, position, d_model] float32; 0 where E does not reach
    #: layer: KL(p‖q) [batch, position] float32, nats, of the model's own distribution p and the q that E reads there
    divergences: Mapping[int, Tensor] = {}


class Energy(ABC):
    """A provider; derive from it."""

    name: str  #: the part of a column's name: small letters, digits and _
    units: str
    version: int  #: enters a run's identity: raise it when numbers change
    at_layers: bool  #: whether E is read at each hooked layer (else once, at the model's output)
    #: whether E is −log p of the next token, so that a uniform guess costs ln V: a layer above that is uncalibrated
    is_loss: bool = False
    #: whether features are aligned with E by construction: shown apart, and counted among no findings
    is_control: bool = False
    #: places at which E is defined, of sites.POINTS; None: wherever an SAE writes
    points: tuple[str, ...] | None = None
    #: whether E is defined on what goes from block to block alone
    of_block_outputs: bool = False
    #: whether the gradient at token t is that of E_t alone, and not of the sum of E over the context
    of_own_token: bool = False
    #: whether E is a function of a layer's activations, which a transcoder reads elsewhere than where it writes
    of_activations: bool = False
    source: str | None = None  #: the word of --energies that made it; set by `registry.make_energies`

    @property
    def identity(self) -> int | str:
        """What a run's identity holds of this energy: its version, and whatever else its numbers depend on."""
        return self.version

    def facts(self) -> dict[str, Any]:
        """What a warehouse's `run_energies` holds of it."""
        return {
            "energy": self.name, "units": self.units, "at_layers": self.at_layers, "is_loss": self.is_loss,
            "is_control": self.is_control, "identity": str(self.identity), "source": self.source,
        }  # fmt: skip

    def check_sites(self, saes: Iterable[SparseAutoencoder]) -> None:
        """Raises UsageError for an SAE at whose place the energy is not defined."""
        for sae in saes:
            between = self.of_block_outputs and sae.site_out.output_of is None
            if between or (self.points is not None and sae.site_out.point not in self.points):
                where = "between blocks" if between else f"at {', '.join(self.points or ())}"
                raise UsageError(
                    f"{self.name} is not defined at {sae.site_out.hook_name}, only {where}: leave "
                    "it out (--energies), or that layer (--layers)."
                )
            if self.of_activations and sae.is_transcoder:
                raise UsageError(
                    f"{self.name} is a function of what the SAE of layer {sae.layer} reads, and a transcoder writes "
                    "elsewhere: leave it out (--energies nll)."
                )

    def check(self, model: LanguageModel, layers: Sequence[int]) -> None:  # noqa: B027 - nothing to refuse
        """Raises UsageError where the energy is not defined for a model at these layers; by default it always is."""

    @abstractmethod
    def read(self, forward: ForwardPass) -> Reading:
        """Energies and gradients of a batch; called while the batch's graph is alive."""


def discrete_gradient(energy: NDArray[np.float64], defined: NDArray[np.bool_]) -> NDArray[np.float64]:
    """−numpy.gradient of E along each maximal run of defined tokens, unit spacing; NaN elsewhere.

    energy, defined: [position]. A run of fewer than two tokens has no derivative.
    """
    result = np.full(energy.shape, np.nan)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], defined, [False])).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2):
        if stop - start >= 2:
            result[start:stop] = -np.gradient(energy[start:stop])
    return result
