"""Llama Scope's files: its authors' formula in float64, what its settings mean, and what is refused by name."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from energy_lens.errors import UsageError
from energy_lens.ingest.sae.choosing import load_saes
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae

Floats = NDArray[np.float64]

D_MODEL, D_SAE, K, N = 12, 36, 5, 80
NAME = "Llama3_1-8B-Base-L15R-8x"


def settings(**changes: Any) -> dict[str, Any]:
    """As they were published, for a small SAE; ... removes one."""
    published = {
        "device": "cuda", "seed": 42, "dtype": "torch.bfloat16", "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post", "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": 3, "d_model": D_MODEL, "d_sae": D_SAE,
        "bias_init_method": "all_zero", "act_fn": "jumprelu", "jump_relu_threshold": 0.35546875,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 10.8125, "out": 10.8125},
        "decoder_exactly_fixed_norm": False, "sparsity_include_decoder_norm": True, "use_glu_encoder": False,
        "init_decoder_norm": 0.5, "init_encoder_norm": None, "init_encoder_with_decoder_transpose": True, "lp": 1,
        "l1_coefficient": 8e-05, "top_k": K, "use_batch_norm_mse": True, "use_ghost_grads": False, "tp_size": 1,
    }  # fmt: skip
    return {name: value for name, value in (published | changes).items() if value is not ...}


def tensors() -> dict[str, torch.Tensor]:
    """Random ones, decoder rows of unlike lengths."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(D_MODEL, D_SAE, generator=generator) * (0.5 + torch.rand(D_SAE, generator=generator))
    return {
        "encoder.weight": torch.randn(D_SAE, D_MODEL, generator=generator), "decoder.weight": rows,
        "encoder.bias": torch.randn(D_SAE, generator=generator),
        "decoder.bias": torch.randn(D_MODEL, generator=generator),
    }  # fmt: skip


def put(folder: Path, where: str = "checkpoints/final.safetensors", /, **changes: Any) -> Path:
    (folder / where).parent.mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(settings(**changes)))
    save_file({name: tensor.contiguous() for name, tensor in tensors().items()}, folder / where)
    return folder


def residuals() -> torch.Tensor:
    return 3 * torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1)) + 1


def formula(x: torch.Tensor, **changes: Any) -> tuple[Floats, Floats]:
    """Activations [n, d_sae] and reconstructions [n, d_model]: encode, choose, decode and undo, in that order.

    As the SAE was trained, nothing folded in: activations are then divided by s and multiplied by ‖d‖ where they are
    counted so, and a threshold is compared with that.
    """
    said = settings(**changes)
    own = {name: tensor.double().numpy() for name, tensor in tensors().items()}
    z = x.double().numpy()
    s = np.ones((len(z), 1))
    unit = 1.0
    if said["norm_activation"] == "dataset-wise":
        unit = math.sqrt(D_MODEL) / said["dataset_average_activation_norm"]["in"]
        s *= unit
    elif said["norm_activation"] == "token-wise":
        s = math.sqrt(D_MODEL) / np.linalg.norm(z, axis=1, keepdims=True)
    bias = own["decoder.bias"] if said["use_decoder_bias"] else np.zeros(D_MODEL)
    h = (z * s - said["apply_decoder_bias_to_pre_encoder"] * bias) @ own["encoder.weight"].T + own["encoder.bias"]
    lengths = np.linalg.norm(own["decoder.weight"], axis=0) if said["sparsity_include_decoder_norm"] else 1.0
    counted = h / unit * lengths
    if said["act_fn"] == "jumprelu" or (said["act_fn"] == "topk" and said["jump_relu_threshold"] > 0):
        kept = counted > said["jump_relu_threshold"]
    elif said["act_fn"] == "topk":
        kept = np.argsort(np.argsort(-counted, axis=1), axis=1) < K
    else:
        kept = np.ones_like(counted, dtype=bool)
    a = np.where(kept, np.maximum(h, 0), 0)
    return a / unit * lengths, (a @ own["decoder.weight"].T + bias) / s


KINDS = [
    {"act_fn": act_fn, "norm_activation": norm, "sparsity_include_decoder_norm": unit, **bias}
    for act_fn, norm, unit, bias in itertools.product(
        ("relu", "topk", "jumprelu"),
        ("none", "dataset-wise", "token-wise", "inference"),
        (True, False),
        ({"apply_decoder_bias_to_pre_encoder": True}, {"use_decoder_bias": False}, {}),
    )
]


@pytest.mark.parametrize("threshold", [0.0, 0.35546875])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula_of_its_training(kind: dict[str, Any], threshold: float, tmp_path: Path) -> None:
    """Every activation function, normalisation, count of decoder lengths and use of the bias."""
    kind = {**kind, "jump_relu_threshold": threshold}
    sae, x = load_sae(put(tmp_path / "sae", **kind)), residuals()
    features, reconstruction = formula(x, **kind)
    assert (features > 0).any()
    values, indices = sae.encode(x)
    dense = torch.zeros(N, D_SAE).scatter_add_(1, indices, values).numpy()
    np.testing.assert_allclose(dense, features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae.reconstruct(x).numpy(), reconstruction, rtol=1e-4, atol=2e-4)


def test_a_folder_as_it_was_published(tmp_path: Path) -> None:
    sae = load_sae(put(tmp_path / NAME))
    assert (sae.layer, sae.architecture, sae.bos, sae.model_name) == (15, "jumprelu", True, "meta-llama/Llama-3.1-8B")
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert [sae.layer for sae in load_saes([tmp_path])] == [15]


def test_another_folder_says_what_its_files_say(tmp_path: Path) -> None:
    folder = put(tmp_path / "mine", "final.safetensors")
    assert (load_sae(folder).bos, load_sae(folder).model_name) == (None, "")
    (folder / "lm_config.json").write_text(json.dumps({"model_name": "gpt2"}))
    assert load_sae(folder).model_name == "gpt2"


def test_written_as_ours_it_stays_the_same(tmp_path: Path) -> None:
    sae = load_sae(put(tmp_path / NAME))
    save_sae(sae, tmp_path / "saved")
    again, x = load_sae(tmp_path / "saved"), residuals()
    torch.testing.assert_close(again.encode(x).values, sae.encode(x).values)
    torch.testing.assert_close(again.reconstruct(x), sae.reconstruct(x))


def test_the_identity_follows_the_settings(tmp_path: Path) -> None:
    kinds = [
        {}, {"jump_relu_threshold": 0.5}, {"act_fn": "relu"}, {"sparsity_include_decoder_norm": False},
        {"dataset_average_activation_norm": {"in": 9.0, "out": 9.0}}, {"apply_decoder_bias_to_pre_encoder": True},
    ]  # fmt: skip
    assert len({load_sae(put(tmp_path / "sae", **kind)).sha256 for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "is of a transcoder"),
        ({"hook_point_in": ...}, "hook_point_in is None"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"act_fn": 3}, "act_fn is 3"),
        ({"norm_activation": "batch-wise"}, "'batch-wise'"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm is None"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, "in is 0"),
        ({"dataset_average_activation_norm": {"in": 1}}, "out is None"),
        ({"jump_relu_threshold": -0.1}, "jump_relu_threshold is -0.1"),
        ({"d_model": "12"}, "d_model is '12'"),
        ({"d_sae": ..., "expansion_factor": 2.5}, "expansion_factor is 2.5"),
        ({"d_sae": 40}, r"\(36, 12\); \(40, 12\) is expected"),
        ({"use_decoder_bias": 1}, "use_decoder_bias is 1"),
        (
            {
                "apply_decoder_bias_to_pre_encoder": True,
                "dataset_average_activation_norm": {"in": 1.0, "out": 2.0},
            },
            "two sizes",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    """By the name of the setting, in one sentence."""
    with pytest.raises(UsageError, match=said) as caught:
        load_sae(put(tmp_path / "sae", **changes))
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_width_that_is_left_out(tmp_path: Path) -> None:
    assert load_sae(put(tmp_path / "sae", d_sae=None)).d_sae == D_SAE


@pytest.mark.parametrize("content", ["", "[]", "{", '"text"', "\x00"])
def test_damaged_settings(content: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "sae")
    (folder / "hyperparams.json").write_text(content)
    with pytest.raises(UsageError, match=r"hyperparams\.json"):
        load_sae(folder)


def test_missing_tensors_and_options_that_do_not_apply(tmp_path: Path) -> None:
    folder = put(tmp_path / "sae")
    with pytest.raises(UsageError, match="leave the activation scale out"):
        load_sae(folder, activation_scale=2.0)
    with pytest.raises(UsageError, match="layer 3 was given"):
        load_sae(folder, layer=3)
    (folder / "checkpoints" / "final.safetensors").unlink()
    torch.save(tensors(), folder / "checkpoints" / "final.pt")
    with pytest.raises(UsageError, match=r"final\.pt is a pickle"):
        load_sae(folder)
