"""A layer's stored attractors in, where its residuals fall out, before and after an edit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_lens.analysis.attractors.network import MERGED, Attractors, Memories, Settled
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.errors import UsageError
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import Site, harvest, tensors_at
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.warehouse.database import Warehouse


@dataclass(frozen=True)
class StoredLandscape:
    """What a run stored of a layer's landscape: all but the rows of its SAE."""

    layer: int
    beta: float
    vectors: Tensor  #: attractors [k, d_model]
    firing: NDArray[np.int32]  #: the features that fire in the run

    @classmethod
    def read(cls, current: CurrentRun, layer: int) -> StoredLandscape:
        """Raises UsageError when the layer's attractors have not been found yet."""
        with Warehouse(current.path) as warehouse:
            stored = stored_attractors(warehouse, current.run_id, layer)
            if stored is None:
                raise UsageError(f"The attractors of layer {layer} are not known yet: run elw attractors first.")
            return cls(layer, *stored, firing_features(warehouse, current.run_id, layer))

    def of(self, sae: SparseAutoencoder) -> Landscape:
        """The landscape of the layer's SAE."""
        rows, _ = alive_rows(sae, self.firing)
        nothing = np.zeros(0, dtype=np.int64)
        return Landscape(self.layer, sae, Memories.of(rows, self.beta), Attractors(self.vectors, nothing, nothing))


@dataclass(frozen=True)
class Landscape:
    """A layer's memories at their β, and the attractors that its sample fell to."""

    layer: int
    sae: SparseAutoencoder
    memories: Memories
    attractors: Attractors

    @classmethod
    def load(cls, current: CurrentRun, layer: int) -> Landscape:
        """Raises UsageError when the layer's attractors have not been found yet."""
        sae = current.sae(layer)
        return StoredLandscape.read(current, layer).of(sae)

    def settle(self, x: Tensor) -> Settled:
        """Where what the layer's features make up (`written`), [n, d_model], falls to."""
        return self.memories.settle(start_of(self.sae, x.float()))


class Shift(NamedTuple):
    """Two sets of settled points compared, [n]."""

    settled: NDArray[np.bool_]  #: both have converged
    changed: NDArray[np.bool_]  #: and are of different basins
    new: NDArray[np.bool_]  #: and the second is of no known attractor
    distance: NDArray[np.float64]  #: 1 − cosine
    hopfield: NDArray[np.float64]  #: E_H of the second minus E_H of the first


def basin_shift(landscape: Landscape, before: Settled, after: Settled) -> Shift:
    """What changed from one set of settled points [n] to another."""
    settled = (before.converged & after.converged).numpy()
    cosine = (before.z * after.z).sum(1).double().numpy()
    old, new = landscape.attractors.assign(before.z), landscape.attractors.assign(after.z)
    same = np.where((old < 0) & (new < 0), cosine > MERGED, old == new)
    changed = settled & ~same
    energies = landscape.memories.energy(after.z) - landscape.memories.energy(before.z)
    return Shift(settled, changed, changed & (new < 0), 1 - cosine, energies.double().numpy())


def firing_rows(warehouse: Warehouse, run_id: int, sae: SparseAutoencoder) -> tuple[Tensor, NDArray[np.int32]]:
    """Decoder rows [m, d_model] of the features that fire in a run, and which they are: dead rows are no memories."""
    return alive_rows(sae, firing_features(warehouse, run_id, sae.layer))


def firing_features(warehouse: Warehouse, run_id: int, layer: int) -> NDArray[np.int32]:
    """The features of a layer that fire in a run, ascending."""
    firing: NDArray[np.int32] = warehouse.run("attractors/firing_features", run=run_id, layer=layer).numpy()["feature"]
    return firing


def alive_rows(sae: SparseAutoencoder, firing: NDArray[np.int32]) -> tuple[Tensor, NDArray[np.int32]]:
    """Decoder rows [m, d_model] of features, and which they are, without those that are zero."""
    rows = sae.W_dec[torch.from_numpy(firing.astype(np.int64))]
    alive = rows.norm(dim=1) > 0
    return rows[alive], firing[alive.numpy()]


@contextlib.contextmanager
def written(model: LanguageModel, saes: Mapping[int, SparseAutoencoder]) -> Iterator[Callable[[], dict[int, Tensor]]]:
    """Inside, a pass is listened to; what is yielded then gives what each SAE's features are to make up, by layer.

    That is [batch, position, d_model] where the SAE writes: its residuals, or a transcoder's output without what a
    skip connection adds.
    """
    with tensors_at(model, _places(saes)) as found:
        yield lambda: _made_up(saes, found)


def harvest_written(model: LanguageModel, saes: Mapping[int, SparseAutoencoder], tokens: Tensor) -> dict[int, Tensor]:
    """The same of a pass over token ids [batch, position], which ends above the last layer."""
    return _made_up(saes, harvest(model, tokens, _places(saes)))


def _places(saes: Mapping[int, SparseAutoencoder]) -> dict[tuple[str, int], Site]:
    sites = {("read", layer): sae.site for layer, sae in saes.items()}
    return sites | {("written", layer): sae.site_out for layer, sae in saes.items()}


def _made_up(saes: Mapping[int, SparseAutoencoder], found: Mapping[tuple[str, int], Tensor]) -> dict[int, Tensor]:
    return {layer: sae.unskipped(found["written", layer], found["read", layer]) for layer, sae in saes.items()}


def start_of(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """z0 [n, d_model] for what an SAE's features make up, x [n, d_model] (`written`)."""
    return torch.nn.functional.normalize(sae.centred(x), dim=1)


def stored_attractors(warehouse: Warehouse, run_id: int, layer: int) -> tuple[float, Tensor] | None:
    """β and the attractors' vectors [k, d] of a layer; None where none were found yet."""
    row = warehouse.run("attractors/stored", run=run_id, layer=layer).fetchall()
    return (row[0][0], torch.tensor(row[0][1], dtype=torch.float32)) if row else None
