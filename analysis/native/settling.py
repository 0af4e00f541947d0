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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from energy_lens.analysis.attractors.network import TOLERANCE, Settled
from energy_lens.ingest.model.energy_landscape import (
    Rotation,
    StepDirection,
    attend_plainly,
    direction,
)
from energy_lens.ingest.model.energy_transformer import EnergyTransformerModel, EnergyTransformerStep

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
        g = self._of(step).norm(x)[:, None]
        return self.model.landscape.energy(g, self.keys, self._rotation(x), self._mask)[:, 0]

    def stepped(self, x: Tensor, step: int = -1) -> Tensor:
        """x [n, d_model] after one step as the model makes it."""
        of_step = self._of(step)
        at = self._direction(x, of_step)
        return x + of_step.log_step.exp() * self.model.landscape.preconditioned(at.d)

    def updated(self, x: Tensor) -> Tensor:
        """x [n, d_model] after one update."""
        return _fallen(x, self._direction(x, self._of(-1)))[0]

    def settle(self, x: Tensor) -> Settled:
        """Where tokens fall from x [n, d_model]; perplexity is not defined here, and 0."""
        x = x.clone()
        steps = torch.zeros(len(x), dtype=torch.int64)
        moving = torch.arange(len(x))
        for _ in range(MAX_STEPS):
            if not len(moving):
                break
            there = self.at(moving)
            x[moving], turned = _fallen(x[moving], there._direction(x[moving], self._of(-1)))
            steps[moving] += 1
            moving = moving[turned >= TOLERANCE]
        converged = torch.ones(len(x), dtype=torch.bool)
        converged[moving] = False
        return Settled(functional.normalize(x, dim=1), steps, converged, torch.zeros(len(x)))

    def _of(self, step: int) -> EnergyTransformerStep:
        return _step(self.model, step)

    def _direction(self, x: Tensor, of_step: EnergyTransformerStep) -> StepDirection:
        def way_down(g: Tensor) -> Tensor:
            down, _ = self.model.landscape.way_down(g, self._rotation(x), attend_plainly, self._mask, self.keys)
            return down

        return _without_context(direction(x[:, None], of_step.norm.weight, of_step.norm.eps, way_down))

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
def behind_last_step(model: EnergyTransformerModel, tokens: Tensor) -> Tensor:
    """x [context, position, d_model] that the last step leaves, for token ids [context, position]."""
    found: list[Tensor] = []
    handle = model.steps[-1].register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        model(input_ids=tokens)
    finally:
        handle.remove()
    return found[0]


@torch.no_grad()
def settle_contexts(
    model: EnergyTransformerModel, x: Tensor, on_step: Callable[[int], object] = lambda _: None
) -> SettledContexts:
    """Let all tokens of contexts move at once from x [context, position, d_model] until they stay.

    Padding on the right moves too, and no token before it knows. on_step: called with the number of each step.
    """
    of_step, landscape = _step(model, -1), model.landscape
    rotation = model.rotation(torch.arange(x.shape[1])[None], x.dtype)
    x = x.clone()
    last = torch.zeros(x.shape[:2], dtype=torch.int64)  # the last step that turned a token
    for number in range(1, MAX_STEPS + 1):
        x, turned = _fallen(x, of_step.direction(x, landscape, rotation))
        last[turned >= TOLERANCE] = number
        on_step(number)
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


def _without_context(at: StepDirection) -> StepDirection:
    return StepDirection(*(part[:, 0] for part in at))


def _step(model: EnergyTransformerModel, step: int) -> EnergyTransformerStep:
    found = model.steps[step]
    assert isinstance(found, EnergyTransformerStep)
    return found
