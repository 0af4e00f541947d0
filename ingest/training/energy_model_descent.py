"""A trained energy transformer and ids in, what its steps do to the energy out: how far each leads down, how surely.

E_t is taken with the keys that the step has, held fixed: what a token's own move does to its own landscape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from energy_lens.ingest.model.energy_landscape import Rotation, highest_step


@torch.no_grad()
def descent(module: Any, ids: Tensor) -> list[dict[str, float]]:
    """A row a step, over all tokens of ids [context, position].

    size: η; energy_before, energy_after: means of E_t; falls: share of tokens whose energy falls; proved: share for
    which η lies below the bound under which it must (`ingest.model.energy_landscape`).
    """
    model = module.base_model
    landscape, config = model.landscape, model.config
    states = model(input_ids=ids, output_hidden_states=True).hidden_states[:-1]
    rotation = Rotation.of(torch.arange(ids.shape[1])[None], config.n_rotated, config.rope_theta, states[0].dtype)
    rows = []
    for number, (step, x) in enumerate(zip(model.steps, states, strict=True)):
        keys = landscape.keys(step.norm(x), rotation)
        at = step.direction(x, landscape, rotation)
        preconditioned = landscape.preconditioned(at.d)
        size = step.log_step.exp()
        before = landscape.energy(step.norm(x), keys, rotation)
        after = landscape.energy(step.norm(x + size * preconditioned), keys, rotation)
        rows.append(
            {
                "step": number,
                "size": float(size),
                "energy_before": float(before.mean()),
                "energy_after": float(after.mean()),
                "falls": float((after <= before).double().mean()),
                "proved": float((size <= highest_step(x, at, preconditioned)).double().mean()),
            }
        )
    return rows
