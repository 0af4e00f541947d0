"""The afternoon's pipeline once more, with transformer-lens and sae-lens; run by `speed.py` in their environment.

    python lenses_peer.py OPTIONS    a JSON object: model (a folder), saes (folders), ids (a file of token ids)

Hooks of transformer-lens keep residuals and their gradients, sae-lens encodes; of dense activations and decoder
gradients the active ones are kept. It needs no energy_lens, and tells its phases as `turns` wants them.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge


def main() -> None:
    options = json.loads(sys.argv[1])
    model = TransformerBridge.boot_transformers(options["model"], device="cpu", dtype=torch.float32)
    model.requires_grad_(False)
    saes = {int(layer): SAE.load_from_disk(folder, device="cpu").float() for layer, folder in options["saes"].items()}
    names = {layer: f"blocks.{layer}.hook_resid_post" for layer in saes}
    kept, found = {}, {}

    def keeping(layer):
        def keep(x, hook):
            if not x.requires_grad:
                x.requires_grad_(True)
            x.retain_grad()
            kept[layer] = x
            return x

        return keep

    hooks = [(name, keeping(layer)) for layer, name in names.items()]

    def run(tokens):
        model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks).backward()
        n_predicted = tokens.shape[0] * (tokens.shape[1] - 1)
        with torch.no_grad():
            for layer, sae in saes.items():
                x, gradient = kept[layer].flatten(0, 1), kept[layer].grad.flatten(0, 1)
                activations = sae.encode(x)
                g = -(gradient * n_predicted) @ sae.W_dec.T
                active = activations > 0
                found[layer] = active.nonzero(), activations[active], g[active]

    batches = torch.tensor(json.loads(Path(options["ids"]).read_text()))
    run(batches[0])
    print("phase stream", flush=True)
    for tokens in batches:
        run(tokens)
    print("phase end", flush=True)
    print(json.dumps({"tokens": batches.numel()}), flush=True)


if __name__ == "__main__":
    main()
