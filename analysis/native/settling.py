"""An energy transformer and residuals in, the points out where they settle on its own landscape.

  x ← ρ·u/‖u‖,  u = −γ·∂E_t/∂g,  ρ = ‖x‖      until ‖Δx‖ < TOLERANCE·ρ

by the last step's gain. E_t is concave in g (`energy_landscape`), so it lies below its tangent, which is lowest on the
sphere of that radius just there: no update raises E_t while the keys stay, at any weights. Where it ends, u is parallel
to x and d = 0: no step of the model moves such a token, whatever η and P. It is the update of a Hopfield network
(`attractors.network`), and much quicker than the model's own steps, which lead down the same landscape along P and
still move after hundreds of times (`block_applied` makes some, to see whether they end in the same place).

All tokens move at once at first, and the keys of each landscape with them. Causality has the first ones come to rest
first, whose keys then stay; a token has settled when an update moves it no more, while a few before it may still creep.
Where it settles is a direction. On a landscape whose keys have settled, single tokens are let fall anew
(`Landscapes.settle`) from wherever an edit put them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from energy_lens.analysis.attractors.network import TOLERANCE, Still, come_to_rest
from energy_lens.ingest.model.energy_landscape import Rotation, StepDirection
from energy_lens.ingest.model.energy_transformer import EnergyTransformerModel, EnergyTransformerStep

#: What helps with another model.
REMEDY = "elw attractors finds those of its SAEs' decoders."

#: Updates after which a token is given up.
MAX_STEPS = 500


@dataclass(frozen=True)
class Landscapes:
    """The landscapes of tokens whose keys are held fixed, each a row of its own."""

    model: EnergyTransformerModel
    keys: Tensor  #: [n, head, place, d_head], place 0 the key that is zero and place s + 1 that of token s
    position: Tensor  #: of each token [n]: it looks at places up to this one

    def at(self, rows: Tensor) -> Landscapes:
        """Those of some tokens."""
        return Landscapes(self.model, self.keys[rows], self.position[rows])

    def energy(self, x: Tensor, step: int = -1) -> Tensor:
        """E_t [n] at x [n, d_model], by the gain of a step."""
        g = _step(self.model, step).norm(x)[:, None]
        return self.model.landscape.energy(g, self.keys, self._rotation(x), self._mask)[:, 0]

    def stepped(self, x: Tensor, step: int = -1) -> Tensor:
        """x [n, d_model] after one step as the model makes it."""
        of_step = _step(self.model, step)
        moved: Tensor = of_step(x[:, None], self.model.landscape, self._rotation(x), mask=self._mask, keys=self.keys)
        return moved[:, 0]

    def updated(self, x: Tensor) -> Tensor:
        """x [n, d_model] after one update."""
        return self._fallen(x)[0]

    def settle(self, x: Tensor) -> Still:
        """Where tokens fall from x [n, d_model]: directions of unit length."""
        still = come_to_rest(x, lambda moving, rows: self.at(rows)._fallen(moving), MAX_STEPS)
        return still._replace(z=functional.normalize(still.z, dim=1))

    def _fallen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        at = _step(self.model, -1).direction(
            x[:, None], self.model.landscape, self._rotation(x), mask=self._mask, keys=self.keys
        )
        moved, went = _fallen(x[:, None], at)
        return moved[:, 0], went[:, 0]

    def _rotation(self, x: Tensor) -> Rotation:
        return self.model.rotation(self.position[:, None], x.dtype)

    @property
    def _mask(self) -> Tensor:
        return (torch.arange(self.keys.shape[2]) <= self.position[:, None])[:, None, None]


@dataclass(frozen=True)
class SettledContexts:
    """Contexts whose tokens have moved at once until they stayed."""

    model: EnergyTransformerModel
    x: Tensor  #: [context, position, d_model]
    steps: Tensor  #: [context, position] int64: after which a token turned no more
    converged: Tensor  #: [context, position]: it does not any more

    def landscapes(self, context: Tensor, position: Tensor) -> Landscapes:
        """Those of tokens [n], with the keys of the tokens before them as they have settled."""
        of_step = _step(self.model, -1)
        positions = torch.arange(self.x.shape[1])[None]
        keys = self.model.landscape.keys(of_step.norm(self.x), self.model.rotation(positions, self.x.dtype))
        return Landscapes(self.model, keys[context], position)


@torch.no_grad()
def settle_contexts(model: EnergyTransformerModel, x: Tensor) -> SettledContexts:
    """Let all tokens of contexts move at once from x [context, position, d_model] until they stay.

    Padding on the right moves too, and no token before it knows.
    """
    of_step, landscape = _step(model, -1), model.landscape
    rotation = model.rotation(torch.arange(x.shape[1])[None], x.dtype)
    x = x.clone()
    last = torch.zeros(x.shape[:2], dtype=torch.int64)  # the last step that turned a token
    for number in range(1, MAX_STEPS + 1):
        x, turned = _fallen(x, of_step.direction(x, landscape, rotation))
        last[turned >= TOLERANCE] = number
        if number > int(last.max()):
            break
    return SettledContexts(model, x, last, last < number)


@torch.no_grad()
def block_applied(model: EnergyTransformerModel, x: Tensor, n_steps: int) -> Tensor:
    """x [context, position, d_model] after so many more steps as the model's last one, each at the length it had."""
    of_step, rotation = _step(model, -1), model.rotation(torch.arange(x.shape[1])[None], x.dtype)
    length = x.norm(dim=-1, keepdim=True)
    for _ in range(n_steps):
        x = functional.normalize(of_step(x, model.landscape, rotation), dim=-1) * length
    return x


def _fallen(x: Tensor, at: StepDirection) -> tuple[Tensor, Tensor]:
    """x [..., n] after an update, and how far it went, relative to its length [...]."""
    length, size = x.norm(dim=-1, keepdim=True), at.u.norm(dim=-1, keepdim=True)
    moved = torch.where(size > 0, at.u * (length / size.clamp_min(1e-30)), x)
    return moved, ((moved - x).norm(dim=-1, keepdim=True) / length.clamp_min(1e-30))[..., 0]


def _step(model: EnergyTransformerModel, step: int) -> EnergyTransformerStep:
    found = model.steps[step]
    assert isinstance(found, EnergyTransformerStep)
    return found
