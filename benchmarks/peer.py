"""The pipeline that a researcher writes in an afternoon with Hugging Face and SAELens, as the yardstick.

Hooks keep the residuals, the model's own loss is backpropagated, and each layer's SAE (the arithmetic of SAELens'
TopK SAE) gives dense activations and decoder gradients, of which the active ones are kept. Everything in float32, as
both libraries load by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from energy_lens.ingest.sae.autoencoder import SparseAutoencoder


class PeerPipeline:
    """model(input_ids, labels).loss.backward() with hooks, then SAEs on what they kept."""

    def __init__(self, folder: Path, saes: Sequence[SparseAutoencoder], frozen: bool) -> None:
        """frozen: whether the user thought of model.requires_grad_(False), which halves the backward pass."""
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.requires_grad_(not frozen)
        self.frozen = frozen
        self.saes = {sae.layer: sae for sae in saes}
        self.kept: dict[int, Tensor] = {}
        for layer in self.saes:
            self.model.model.layers[layer].register_forward_hook(self._keep(layer))

    def _keep(self, layer: int):
        def hook(_module, _inputs, output):
            x = output[0] if isinstance(output, tuple) else output
            if not x.requires_grad:
                x.requires_grad_(True)
            x.retain_grad()
            self.kept[layer] = x

        return hook

    def run(self, tokens: Tensor) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Per layer: indices of active (token, feature) pairs, activations and decoder gradients."""
        self.model.zero_grad(set_to_none=True)
        loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        n_predicted = tokens.shape[0] * (tokens.shape[1] - 1)
        results = {}
        with torch.no_grad():
            for layer, sae in self.saes.items():
                x, gradient = self.kept[layer].flatten(0, 1), self.kept[layer].grad.flatten(0, 1) * n_predicted
                h = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
                top = h.topk(sae.k, dim=-1)
                activations = torch.zeros_like(h).scatter_(-1, top.indices, top.values.relu())
                g = -gradient @ sae.W_dec.T
                active = activations.nonzero()
                results[layer] = (active, activations[activations > 0], g[activations > 0])
        return results
