"""Does SAELens compute from our files what we compute, and we from its files what it computes?

The two packages need not share an environment. Three steps, over one folder:

    python benchmarks/saelens_parity.py write DIR              here: SAEs of every kind, and what we make of them
    OTHER/bin/python benchmarks/saelens_parity.py check DIR    where sae-lens is: compares, writes its own SAEs
    python benchmarks/saelens_parity.py read DIR               here: compares ours with what SAELens made of those

Beside each SAE lies `expected.safetensors`: x [n, d_in], features [n, d_sae], reconstruction [n, d_in]. Every step
prints the largest difference of both, relative to the largest number, and fails above TOLERANCE.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D_IN, D_SAE, K, N = 48, 192, 6, 200
TOLERANCE = 1e-5
EXPECTED = "expected.safetensors"
SCALE = 0.37  #: of SAEs with expected_average_only_in

ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")
NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")


def main(step: str, folder: str) -> int:
    steps = {"write": write, "check": check, "read": read}
    torch.manual_seed(0)
    worst = steps[step](Path(folder))
    print(f"largest relative difference {worst:.1e}, at most {TOLERANCE:.0e} is expected")
    return int(worst > TOLERANCE)


def residuals() -> Tensor:
    """[N, D_IN] like a model's: a mean, dimensions of unlike size, tokens of unlike norm."""
    return (torch.randn(N, D_IN) * torch.rand(D_IN) * 4 + torch.randn(D_IN)) * (0.3 + 3 * torch.rand(N, 1))


def weights(architecture: str) -> dict[str, Tensor]:
    """Tensors as SAELens names them, none of them 0."""
    rows = torch.randn(D_SAE, D_IN) * (0.5 + torch.rand(D_SAE, 1)) / D_IN**0.5
    tensors = {"W_enc": rows.T + 0.1 * torch.randn(D_IN, D_SAE) / D_IN**0.5, "W_dec": rows, "b_dec": torch.randn(D_IN)}
    biases = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}
    for name in biases.get(architecture, ("b_enc",)):
        tensors[name] = 0.3 * torch.randn(D_SAE)
    return tensors


def compared(name: str, expected: dict[str, Tensor], features: Tensor, reconstruction: Tensor) -> float:
    """Print and return the larger of two relative differences.

    Where a token's k-th and next activations are equal to rounding, either may be taken: such a token is left out if
    its sum of activations is the same.
    """
    sums, wanted_sums = features.sum(1), expected["features"].sum(1)
    swapped = ((features > 0) != (expected["features"] > 0)).any(1) & ((sums - wanted_sums).abs() < 1e-5 * wanted_sums)
    differences = []
    for key, values in (("features", features), ("reconstruction", reconstruction)):
        wanted = expected[key]
        differences.append(float((values - wanted)[~swapped].abs().max() / wanted.abs().max()))
    ties = f"  {int(swapped.sum())} tie" if swapped.any() else ""
    print(f"{name:45s} features {differences[0]:.1e}  reconstruction {differences[1]:.1e}{ties}")
    return max(differences)


# ------------------------------------------------------------------------------------------------ here


def ours(sae, x: Tensor) -> dict[str, Tensor]:
    values, indices = sae.encode(x)
    features = torch.zeros(len(x), D_SAE).scatter_add_(1, indices, values)
    return {"x": x, "features": features, "reconstruction": sae.reconstruct(x)}


def write(folder: Path) -> float:
    from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
    from energy_lens.ingest.sae.formats import load_sae
    from energy_lens.ingest.sae.saving import save_sae

    worst = 0.0
    for architecture in ARCHITECTURES:
        for normalisation in NORMALISATIONS:
            tensors = weights("jumprelu" if architecture == "gated" else architecture)
            sae = SparseAutoencoder(
                layer=3, k=K if architecture == "topk" else None, architecture=architecture,
                normalisation=normalisation, model_name="none", mean=torch.randn(D_IN), norm_median=7.0, **tensors,
            )  # fmt: skip
            target = folder / "ours" / f"{architecture}-{normalisation}"
            save_sae(sae, target)
            expected = ours(sae, residuals())
            save_file(expected, target / EXPECTED)
            again = ours(load_sae(target), expected["x"])
            worst = max(worst, compared(target.name, expected, again["features"], again["reconstruction"]))
    return worst


def read(folder: Path) -> float:
    from energy_lens.ingest.sae.formats import load_sae

    worst = 0.0
    for path in sorted(folder.glob(f"theirs/*/{EXPECTED}")):
        expected = load_file(path)
        computed = ours(load_sae(path.parent, SCALE if "unfolded" in path.parent.name else None), expected["x"])
        worst = max(worst, compared(path.parent.name, expected, computed["features"], computed["reconstruction"]))
    return worst


# ------------------------------------------------------------------------------------------------ where SAELens is


@torch.no_grad()
def theirs(sae, x: Tensor) -> dict[str, Tensor]:
    features = sae.encode(x)
    return {"x": x, "features": features.contiguous(), "reconstruction": sae.decode(features).contiguous()}


@torch.no_grad()
def check(folder: Path) -> float:
    import sae_lens

    worst = 0.0
    for path in sorted(folder.glob(f"ours/*/{EXPECTED}")):
        sae = sae_lens.SAE.load_from_disk(path.parent)
        assert sae.cfg.metadata.hook_name == "blocks.3.hook_resid_post", "the metadata is lost"
        expected = load_file(path)
        computed = theirs(sae, expected["x"])
        worst = max(worst, compared(path.parent.name, expected, computed["features"], computed["reconstruction"]))
    write_theirs(folder / "theirs")
    return worst


def write_theirs(folder: Path) -> None:
    """SAEs as SAELens itself saves them: inference and training ones, unfolded ones, and one from before v6."""
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    def metadata():
        return SAEMetadata(hook_name="blocks.2.hook_resid_post", model_name="none", prepend_bos=False)

    def filled(sae, architecture: str):
        parameters = dict(sae.named_parameters())
        for name, tensor in weights(architecture).items():
            if name in parameters:
                parameters[name].data.copy_(tensor)
        return sae

    classes = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
    }
    for architecture, (sae_class, config_class) in classes.items():
        variants = [{"k": K}, {"k": K, "rescale_acts_by_decoder_norm": True}] if architecture == "topk" else [{}]
        for normalisation in (*NORMALISATIONS, "expected_average_only_in"):
            for centred in (True, False):
                for settings in variants:
                    config = config_class(
                        d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=centred, normalize_activations=normalisation,
                        metadata=metadata(), **settings,
                    )  # fmt: skip
                    sae = filled(sae_class(config), architecture)
                    unfolded = normalisation == "expected_average_only_in"
                    rescaled = "-rescaled" if len(settings) > 1 else ""
                    kind = f"{'centred' if centred else 'raw'}{rescaled}-{'unfolded' if unfolded else normalisation}"
                    target = folder / f"{architecture}-{kind}"
                    sae.save_model(target)
                    if unfolded:
                        sae.fold_activation_norm_scaling_factor(SCALE)
                    save_file(theirs(sae, residuals()), target / EXPECTED)

    trained = {
        "standard": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig, {}),
        "topk": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig, {"k": K}),
        "jumprelu": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig, {}),
        "gated": (sae_lens.GatedTrainingSAE, sae_lens.GatedTrainingSAEConfig, {}),
        "batchtopk": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig, {"k": K}),
        "matryoshka_batchtopk": (
            sae_lens.MatryoshkaBatchTopKTrainingSAE, sae_lens.MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": K, "matryoshka_widths": [D_SAE // 4, D_SAE]},
        ),
    }  # fmt: skip
    for architecture, (sae_class, config_class, settings) in trained.items():
        sae = filled(sae_class(config_class(d_in=D_IN, d_sae=D_SAE, metadata=metadata(), **settings)), architecture)
        if "batchtopk" in architecture:
            sae.topk_threshold.fill_(0.8)
        target = folder / f"trained-{architecture}"
        sae.save_inference_model(target)
        expected = theirs(sae_lens.SAE.load_from_disk(target), residuals())
        save_file(expected, target / EXPECTED)
        checkpoint = folder / f"checkpoint-{architecture}"  # as it is saved while it is trained
        sae.save_model(checkpoint)
        save_file(expected, checkpoint / EXPECTED)

    write_centred(folder / "centred")
    write_llama_scope(folder / "Llama3_1-8B-Base-L2R-4x")
    for architecture in ("standard", "topk", "jumprelu", "gated"):
        target = folder / f"before-v6-{architecture}"
        target.mkdir(parents=True, exist_ok=True)
        topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
        flat = {
            "architecture": "standard" if architecture == "topk" else architecture, "d_in": D_IN, "d_sae": D_SAE,
            "dtype": "float32", "device": "cpu", "model_name": "none", "hook_name": "blocks.2.hook_resid_post",
            "hook_layer": 2, "hook_head_index": None, "prepend_bos": False, "apply_b_dec_to_input": False,
            "finetuning_scaling_factor": False, "normalize_activations": "none", "context_size": 128,
            "sae_lens_training_version": None, **(topk if architecture == "topk" else {"activation_fn_str": "relu"}),
        }  # fmt: skip
        (target / "cfg.json").write_text(json.dumps(flat))
        tensors = weights(architecture) | {"scaling_factor": torch.ones(D_SAE)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "sae_weights.safetensors")
        save_file(theirs(sae_lens.SAE.load_from_disk(target), residuals()), target / EXPECTED)


def write_centred(folder: Path) -> None:
    """An SAE of a model that TransformerLens centred: it is given x less its mean, which is added again."""
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(
        hook_name="blocks.2.hook_resid_post", model_name="none", prepend_bos=False,
        model_from_pretrained_kwargs={"center_writing_weights": True},
    )  # fmt: skip
    sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, metadata=metadata))
    for name, tensor in weights("standard").items():
        dict(sae.named_parameters())[name].data.copy_(tensor)
    sae.save_model(folder)
    x = residuals()
    mean = x.mean(1, keepdim=True)
    expected = theirs(sae, x - mean)
    save_file(expected | {"x": x, "reconstruction": expected["reconstruction"] + mean}, folder / EXPECTED)


def write_llama_scope(folder: Path) -> None:
    """An SAE in Llama Scope's files, read by SAELens' own reader, whose downloads are answered from the folder.

    SAELens counts activations in units of the scaled input, and leaves out the lengths of decoder rows: they are 1.
    """
    import sae_lens
    from sae_lens.loading import pretrained_sae_loaders as loaders

    hook, norm = "blocks.2.hook_resid_post", 10.8125
    settings = {
        "hook_point_in": hook, "hook_point_out": hook, "use_decoder_bias": True, "d_model": D_IN, "d_sae": D_SAE,
        "apply_decoder_bias_to_pre_encoder": False, "act_fn": "jumprelu", "jump_relu_threshold": 0.8,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm},
        "sparsity_include_decoder_norm": True, "use_glu_encoder": False, "top_k": K,
    }  # fmt: skip
    own = weights("standard")
    rows = own["W_dec"] / own["W_dec"].norm(dim=1, keepdim=True)
    tensors = {
        "encoder.weight": own["W_enc"].T, "encoder.bias": own["b_enc"], "decoder.weight": rows.T,
        "decoder.bias": own["b_dec"],
    }  # fmt: skip
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(settings))
    named = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "checkpoints" / "final.safetensors")

    def found(repo_id, filename, subfolder="", **options):
        return str(folder.parent / subfolder / filename)

    loaders.hf_hub_download = found
    overrides = {"dtype": "float32"}
    config, state, _ = loaders.llama_scope_sae_huggingface_loader("", folder.name, "cpu", cfg_overrides=overrides)
    sae = sae_lens.SAE.from_dict(loaders.handle_config_defaulting(config))
    sae.load_state_dict(state)
    scale = math.sqrt(D_IN) / norm
    sae.fold_activation_norm_scaling_factor(scale)
    expected = theirs(sae, residuals())
    save_file(expected | {"features": expected["features"] / scale}, folder / EXPECTED)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "check", "read"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
