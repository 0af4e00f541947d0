"""Checkpoints of SAELens' training, and SAEs of models that TransformerLens changed: what they compute.

Formulas are written down here in float64; benchmarks/saelens_parity.py compares with SAELens itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from energy_lens.errors import UsageError
from energy_lens.ingest.inclusion import INCLUDED
from energy_lens.ingest.model.residuals import residual_stream
from energy_lens.ingest.sae.autoencoder import CENTRED, SparseAutoencoder
from energy_lens.ingest.sae.choosing import check_saes
from energy_lens.ingest.sae.evaluation import _add_reconstruction
from energy_lens.ingest.sae.figures import Sums
from energy_lens.ingest.sae.formats import CONFIG, WEIGHTS, load_sae
from energy_lens.ingest.sae.saving import save_sae

D_MODEL, D_SAE, N = 12, 40, 60
SCALED = "expected_average_only_in"


def tensors(**others: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(D_SAE, D_MODEL, generator=generator) * (0.5 + torch.rand(D_SAE, 1, generator=generator))
    return {
        "W_enc": torch.randn(D_MODEL, D_SAE, generator=generator), "W_dec": rows,
        "b_enc": torch.randn(D_SAE, generator=generator), "b_dec": torch.randn(D_MODEL, generator=generator), **others,
    }  # fmt: skip


def residuals(d_model: int = D_MODEL) -> Tensor:
    """[n, d_model], each token with a mean over dimensions."""
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(N, d_model, generator=generator) + 3 * torch.randn(N, 1, generator=generator)


def put(folder: Path, held: dict[str, Tensor], /, **changes: Any) -> Path:
    """A folder in SAELens v6 format."""
    metadata = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"} | changes.pop("metadata", {})
    config = {"architecture": "standard", "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({**config, "metadata": metadata}))
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / WEIGHTS)
    return folder


def dense(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    values, indices = sae.encode(x)
    return torch.zeros(len(x), sae.d_sae).scatter_add_(1, indices, values)


def close(computed: Tensor, wanted: Tensor) -> None:
    np.testing.assert_allclose(computed.numpy(), wanted.numpy(), rtol=1e-4, atol=2e-4)


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_batch_topk_as_its_training_saves_it(
    architecture: str, rescaled: bool, scale: float | None, tmp_path: Path
) -> None:
    """One threshold for all features, on activations that count the length of a decoder row where the config says so.

    The input's scale is found beside it, where the training keeps it.
    """
    theta, s = 4.5, scale or 1.0
    held = tensors(topk_threshold=torch.tensor(theta, dtype=torch.float64))
    folder = put(
        tmp_path / "sae", held, architecture=architecture, k=5.5, topk_threshold_lr=0.01, matryoshka_widths=[8, D_SAE],
        rescale_acts_by_decoder_norm=rescaled, normalize_activations=SCALED if scale else "none",
    )  # fmt: skip
    if scale:
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    own, x = {name: tensor.double() for name, tensor in held.items()}, residuals()
    lengths = own["W_dec"].norm(dim=1) if rescaled else torch.ones(D_SAE).double()
    h = ((s * x.double() - own["b_dec"]) @ own["W_enc"] + own["b_enc"]) * lengths
    a = torch.where(h > theta, h.relu(), 0)
    assert 0 < (a > 0).double().mean() < 0.5
    sae = load_sae(folder)
    assert (sae.architecture, sae.k) == ("jumprelu", None)
    # SAELens folds s first, which makes the rows longer that activations are multiplied by.
    close(dense(sae, x), a / (s if rescaled else 1))
    close(sae.reconstruct(x), ((a / lengths) @ own["W_dec"] + own["b_dec"]) / s)


def test_a_scale_that_is_given_goes_before_the_recorded_one(tmp_path: Path) -> None:
    folder = put(tmp_path / "sae", tensors(), normalize_activations=SCALED)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.3}))
    assert not torch.equal(load_sae(folder, 0.5).W_enc, load_sae(folder).W_enc)
    for spoiled in ("{", "[]", '{"scaling_factor": null}', '{"scaling_factor": -1}', "{}"):
        (folder / "activation_scaler.json").write_text(spoiled)
        with pytest.raises(UsageError, match=r"activation_scaler\.json"):
            load_sae(folder)


def test_a_threshold_that_was_saved_as_its_logarithm(tmp_path: Path) -> None:
    """Older checkpoints of JumpReLU SAEs."""
    theta = torch.linspace(0.1, 3, D_SAE)
    logarithmic = load_sae(put(tmp_path / "a", tensors(log_threshold=theta.log()), architecture="jumprelu"))
    plain = load_sae(put(tmp_path / "b", tensors(threshold=theta), architecture="jumprelu"))
    close(dense(logarithmic, residuals()), dense(plain, residuals()))


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("abstopk", "below 0"), ("matching_pursuit", "one feature after another"), ("temporal", "tokens before"),
        ("of my own", "is expected"), (None, "is expected"), (["standard"], "is expected"),
    ],
)  # fmt: skip
def test_what_else_saelens_has_is_refused_for_what_it_is(architecture: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load_sae(put(tmp_path / "sae", tensors(), architecture=architecture))


def test_a_checkpoint_without_its_threshold(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="topk_threshold is expected"):
        load_sae(put(tmp_path / "sae", tensors(threshold=torch.ones(D_SAE)), architecture="batchtopk"))


# ------------------------------------------------------------------------------------------------ centred models


def loaded_with(*names: str, hook_name: str = "blocks.3.hook_resid_post") -> dict[str, Any]:
    return {"metadata": {"model_from_pretrained_kwargs": dict.fromkeys(names, True), "hook_name": hook_name}}


HARMLESS = ("fold_ln", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices")


def test_what_leaves_the_residual_stream_alone_is_read(tmp_path: Path) -> None:
    """They change numbers inside of blocks and logits."""
    changed = load_sae(put(tmp_path / "a", tensors(), **loaded_with(*HARMLESS)))
    plain = load_sae(put(tmp_path / "b", tensors()))
    assert torch.equal(changed.reconstruct(residuals()), plain.reconstruct(residuals()))
    assert changed.sha256 == plain.sha256


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("centred_by_bias", [True, False])
def test_an_sae_of_a_centred_model(centred_by_bias: bool, scale: float | None, tmp_path: Path) -> None:
    """It reads x less its mean over dimensions, and makes up that; what was taken out is given back."""
    held, s = tensors(), scale or 1.0
    folder = put(
        tmp_path / "sae", held, apply_b_dec_to_input=centred_by_bias, **loaded_with("center_writing_weights"),
        normalize_activations=SCALED if scale else "none",
    )  # fmt: skip
    sae, x = load_sae(folder, scale), residuals()
    own, mean = {name: tensor.double() for name, tensor in held.items()}, x.double().mean(1, keepdim=True)
    read = (x.double() - mean) * s
    a = ((read - centred_by_bias * own["b_dec"]) @ own["W_enc"] + own["b_enc"]).relu()
    made_up = (a @ own["W_dec"] + own["b_dec"]) / s
    assert sae.normalisation == CENTRED
    close(dense(sae, x), a)
    close(sae.reconstruct(x), made_up + mean)
    close(sae.centred(x), read / s - own["b_dec"] / s)
    assert sae.token_scales(x) is None
    assert sae.sha256 != load_sae(put(folder, held, apply_b_dec_to_input=centred_by_bias)).sha256 or scale

    save_sae(sae, tmp_path / "saved")
    again = load_sae(tmp_path / "saved")
    assert again.normalisation == CENTRED
    close(again.reconstruct(x), sae.reconstruct(x))


def test_its_gradient_is_a_finite_difference(tmp_path: Path) -> None:
    """½ ∂Σa²/∂x, by x as it is."""
    sae = load_sae(put(tmp_path / "sae", tensors(), **loaded_with("center_writing_weights"))).to(torch.float64)
    x = residuals().double()
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = 1e-6
    above, below = (sae.encode(x + sign * step * direction).values.square().sum(1) / 2 for sign in (1, -1))
    gradient = sae.encoder_gradient(x, sae.encode(x))
    torch.testing.assert_close((gradient * direction).sum(1), (above - below) / (2 * step), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradient.mean(1), torch.zeros(N, dtype=torch.float64))


def test_layer_norm_takes_the_mean_out_by_itself(tmp_path: Path) -> None:
    held = tensors()
    centred = put(tmp_path / "a", held, normalize_activations="layer_norm", **loaded_with("center_writing_weights"))
    plain = put(tmp_path / "b", held, normalize_activations="layer_norm")
    assert torch.equal(load_sae(centred).reconstruct(residuals()), load_sae(plain).reconstruct(residuals()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (loaded_with("center_writing_weights") | {"normalize_activations": "constant_norm_rescale"}, "expected beside"),
        (loaded_with("fold_ln", hook_name="blocks.3.ln2.hook_normalized"), "fold_ln"),
        (loaded_with("fold_value_biases", hook_name="blocks.3.attn.hook_z"), "fold_value_biases"),
        ({"metadata": {"model_from_pretrained_kwargs": ["center_writing_weights"]}}, "is a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load_sae(put(tmp_path / "sae", tensors(), **changes))


def centred_for_tiny(**changes: Any) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 32, generator=generator) / 32**0.5
    fields: dict[str, Any] = {
        "layer": 1, "k": None, "architecture": "standard", "W_enc": rows.T.contiguous(), "b_enc": torch.zeros(64),
        "W_dec": rows, "b_dec": torch.randn(32, generator=generator), "normalisation": CENTRED,
    }  # fmt: skip
    return SparseAutoencoder(**fields | changes)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_a_model_of_layer_norms_says_the_same_with_any_mean(architecture: str, tiny: Callable[..., Any]) -> None:
    """Which is why the mean may be given back: nothing above sees it, and the gradient has no part along it."""
    model = tiny(architecture).load(torch.float64)
    check_saes(model, [centred_for_tiny()])
    tokens = model.any_tokens(2, 12)
    with torch.no_grad(), residual_stream(model, [1]) as held:
        hidden = model.hidden(tokens)
    x = held[1]
    lifted = (x + 5 * torch.randn(2, 12, 1, dtype=x.dtype)).detach()
    with torch.no_grad():
        torch.testing.assert_close(model.hidden_above(tokens, 1, lifted), hidden, rtol=1e-4, atol=1e-4)


def test_other_norms_see_the_mean(tiny: Callable[..., Any]) -> None:
    """TransformerLens does not centre models of RMSNorm, so that a file that says so cannot be right."""
    with pytest.raises(UsageError, match="LayerNorm alone"):
        check_saes(tiny("llama").load(), [centred_for_tiny()])


def test_the_figures_are_those_of_the_centred_model() -> None:
    """FVU and cosine leave out the mean that is handed through: it is no merit of the SAE's."""
    sae, x, sums = centred_for_tiny(), residuals(32), Sums.empty(32, 64)
    batch: Any = SimpleNamespace(places=torch.ones(1, N, dtype=torch.bool), documents=[0])
    _add_reconstruction(sae, sums, batch, x[None], x[None], torch.full((1, N), INCLUDED))
    read = (x - x.mean(1, keepdim=True)).double()
    made_up = (read @ sae.W_enc.double() + sae.b_enc - sae.b_dec.double() @ sae.W_enc.double()).relu()
    made_up = made_up @ sae.W_dec.double() + sae.b_dec
    assert sums.error == pytest.approx(float((made_up - read).square().sum()), rel=1e-5)
    assert sums.spread.squares == pytest.approx(float((read - read.mean(0)).square().sum()), rel=1e-5)
    assert sums.cosine == pytest.approx(float(torch.cosine_similarity(read, made_up, dim=1).sum()), rel=1e-5)
