"""SAE formats: every architecture and normalisation against its formula, what is refused, and what ingest makes of it.

The formulas here are SAELens' and sparsify's, written down in float64 numpy from their definitions. They share no code
with what they check; benchmarks/saelens_parity.py compares with SAELens itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from energy_lens.cli.main import main
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.energies.forward import run_forward
from energy_lens.ingest.energies.hopfield import Hopfield
from energy_lens.ingest.pipeline import IngestOptions, calibration, ingest
from energy_lens.ingest.sae import autoencoder as sae_module
from energy_lens.ingest.sae.autoencoder import ARCHITECTURES, NORMALISATIONS, SparseActivations, SparseAutoencoder
from energy_lens.ingest.sae.choosing import registered_folder, sae_folders
from energy_lens.ingest.sae.formats import CONFIG, SPARSIFY_WEIGHTS, STATISTICS, WEIGHTS, load_sae
from energy_lens.ingest.sae.saving import save_sae, save_sparsify
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]

D_MODEL, D_SAE, K, N = 12, 40, 5, 60
KINDS = list(itertools.product(ARCHITECTURES, NORMALISATIONS))
SCALED = "expected_average_only_in"
BIASES = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}


def tensors_of(architecture: str, seed: int = 0, d_model: int = D_MODEL, d_sae: int = D_SAE) -> dict[str, torch.Tensor]:
    """Random tensors under SAELens' names, decoder rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows = random(d_sae, d_model) * (0.5 + torch.rand(d_sae, 1, generator=generator)) / d_model**0.5
    tensors = {"W_enc": random(d_model, d_sae) / d_model**0.5, "W_dec": rows, "b_dec": random(d_model)}
    return tensors | {name: 0.4 * random(d_sae) for name in BIASES.get(architecture, ("b_enc",))}


def residuals(seed: int = 0, n: int = N, d_model: int = D_MODEL) -> torch.Tensor:
    """[n, d_model] with a mean and tokens of unlike norm."""
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(n, d_model, generator=generator) * 2 + torch.randn(d_model, generator=generator)
    return x * (0.3 + 3 * torch.rand(n, 1, generator=generator))


def normalised(x: Floats, normalisation: str) -> tuple[Floats, Floats, Floats]:
    """norm(x), and the scale [n, 1] and shift [n, 1] that undo it."""
    ones, zeros = np.ones((len(x), 1)), np.zeros((len(x), 1))
    if normalisation == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1])
        return x / scale, scale, zeros
    if normalisation == "layer_norm":
        mean, sigma = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        return (x - mean) / (sigma + 1e-5), sigma, mean
    return x, ones, zeros


def formula(
    architecture: str, weights: dict[str, torch.Tensor], x: torch.Tensor, normalisation: str = "none",
    centred: bool = True, rescaled: bool = False, k: int = K, input_scale: float = 1.0,
) -> tuple[Floats, Floats, NDArray[np.bool_]]:  # fmt: skip
    """Features [n, d_sae], reconstruction [n, d_in], and which tokens are not at a threshold to rounding."""
    own = {name: tensor.double().numpy() for name, tensor in weights.items()}
    z, scale, shift = normalised(x.double().numpy() * input_scale, normalisation)
    z = z - centred * own["b_dec"]
    projection = z @ own["W_enc"]
    norms = np.linalg.norm(own["W_dec"], axis=1) if rescaled else np.ones(len(own["W_dec"]))
    if architecture == "gated":
        gate = projection + own["b_gate"]
        magnitude = projection * np.exp(own["r_mag"]) + own["b_mag"]
        features = (gate > 0) * np.maximum(magnitude, 0)
        clear = np.abs(gate).min(1) > 1e-4
    elif architecture == "jumprelu":
        h = projection + own["b_enc"]
        features = np.maximum(h, 0) * (h > own["threshold"])
        clear = np.abs(h - own["threshold"]).min(1) > 1e-4
    elif architecture == "standard":
        features = np.maximum(projection + own["b_enc"], 0)
        clear = np.ones(len(x), dtype=bool)
    else:
        h = (projection + own["b_enc"]) * norms
        order = np.argsort(-h, axis=1)
        features = np.zeros_like(h)
        kept = order[:, :k]
        np.put_along_axis(features, kept, np.maximum(np.take_along_axis(h, kept, 1), 0), 1)
        ordered = np.take_along_axis(h, order, 1)
        clear = ordered[:, k - 1] - ordered[:, k] > 1e-4
    reconstruction = (features / norms) @ own["W_dec"] + own["b_dec"]
    return features, (reconstruction * scale + shift) / input_scale, clear


def dense(activations: SparseActivations, d_sae: int = D_SAE) -> Floats:
    """[n, d_sae] of sparse activations, each feature at most once."""
    values, indices = activations.values.double(), activations.indices
    assert (values >= 0).all()
    counts = torch.zeros(len(values), d_sae, dtype=torch.int64).scatter_add_(1, indices, (values > 0).long())
    assert counts.max() <= 1
    return torch.zeros(len(values), d_sae, dtype=torch.float64).scatter_add_(1, indices, values).numpy()


def assert_equals(sae: SparseAutoencoder, x: torch.Tensor, expected: tuple[Floats, Floats, NDArray[np.bool_]]) -> None:
    """Activations and reconstruction are the formula's, to float32's rounding."""
    features, reconstruction, clear = expected
    assert clear.sum() > len(x) / 2
    assert (features > 0).any()
    np.testing.assert_allclose(dense(sae.encode(x))[clear], features[clear], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(sae.reconstruct(x).numpy()[clear], reconstruction[clear], atol=2e-4, rtol=1e-4)


def saelens_config(architecture: str, /, **changes: Any) -> dict[str, Any]:
    """A v6 config; entries of `metadata` are merged."""
    metadata = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"} | changes.pop("metadata", {})
    topk = {"k": K} if architecture == "topk" else {}
    config = {"architecture": architecture, "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", **topk}
    return {**config, **changes, "metadata": metadata}


def flat_config(**changes: Any) -> dict[str, Any]:
    """A config from before v6; ... removes an entry."""
    config = {
        "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "model_name": "gpt2", "prepend_bos": False,
        "hook_name": "blocks.3.hook_resid_post", "hook_layer": 3, "activation_fn_str": "relu",
        "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "normalize_activations": "none",
    }  # fmt: skip
    return {name: value for name, value in (config | changes).items() if value is not ...}


def sparsify_config(**changes: Any) -> dict[str, Any]:
    """A sparsify config; ... removes an entry."""
    config = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": D_SAE, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D_MODEL,
    }  # fmt: skip
    return {name: value for name, value in (config | changes).items() if value is not ...}


def sparsify_tensors(seed: int = 0, d_sae: int = D_SAE) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random tensors under sparsify's names, and the same under SAELens'."""
    own = tensors_of("topk", seed, d_sae=d_sae)
    named = {"encoder.weight": own["W_enc"].T, "encoder.bias": own["b_enc"], "W_dec": own["W_dec"]}
    return named | {"b_dec": own["b_dec"]}, own


def put(folder: Path, config: Any, tensors: dict[str, torch.Tensor], name: str = WEIGHTS) -> Path:
    """A folder with a config and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    return folder


def make_sae(architecture: str, normalisation: str = "none", /, seed: int = 0, **changes: Any) -> SparseAutoencoder:
    """An SAE in memory; a gated one has the single threshold that its two make."""
    own = tensors_of("jumprelu" if architecture == "gated" else architecture, seed)
    fields: dict[str, Any] = {
        "layer": 3, "k": K if architecture == "topk" else None, "architecture": architecture,
        "normalisation": normalisation, "model_name": "gpt2", "norm_median": 7.25, "metadata": {"fvu": 0.5},
        "mean": torch.randn(D_MODEL), "quartiles": torch.rand(D_SAE, 3), **own,
    }  # fmt: skip
    return SparseAutoencoder(**fields | changes)


def refusal(folder: Path, **options: Any) -> str:
    """The sentence with which an SAE is refused."""
    with pytest.raises(UsageError) as caught:
        load_sae(folder, **options)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 700
    return message


# ------------------------------------------------------------------------------------------------ formulas


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("architecture", "normalisation"), KINDS)
def test_saelens_files_mean_what_saelens_makes_of_them(
    architecture: str, normalisation: str, centred: bool, tmp_path: Path
) -> None:
    """A file built by hand gives the activations and reconstructions of the architecture's formula."""
    weights = tensors_of(architecture)
    config = saelens_config(architecture, normalize_activations=normalisation, apply_b_dec_to_input=centred)
    sae = load_sae(put(tmp_path / "sae", config, weights))
    assert (sae.architecture, sae.normalisation, sae.layer, sae.model_name) == (architecture, normalisation, 3, "gpt2")
    assert_equals(sae, residuals(), formula(architecture, weights, residuals(), normalisation, centred))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_rescaled_topk(normalisation: str, tmp_path: Path) -> None:
    """rescale_acts_by_decoder_norm chooses by h·‖d‖, whatever normalises the input."""
    weights = tensors_of("topk")
    config = saelens_config("topk", normalize_activations=normalisation, rescale_acts_by_decoder_norm=True)
    sae = load_sae(put(tmp_path / "sae", config, weights))
    assert_equals(sae, residuals(), formula("topk", weights, residuals(), normalisation, rescaled=True))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("architecture", "rescaled"), [*((name, False) for name in ARCHITECTURES), ("topk", True)])
def test_a_scaled_input_is_folded_exactly(architecture: str, centred: bool, rescaled: bool, tmp_path: Path) -> None:
    """With its scale an unfolded SAE reads s·x and gives x̂/s; without one, or a folded SAE with one, is refused."""
    weights = tensors_of(architecture)
    rescale = {"rescale_acts_by_decoder_norm": True} if rescaled else {}
    config = saelens_config(architecture, normalize_activations=SCALED, apply_b_dec_to_input=centred, **rescale)
    folder = put(tmp_path / "sae", config, weights)
    assert "--activation-scale" in refusal(folder)
    sae = load_sae(folder, activation_scale=0.3)
    features, reconstruction, clear = formula(
        architecture, weights, residuals(), "none", centred, rescaled, input_scale=0.3
    )
    # SAELens folds the scale first, which makes the decoder rows longer that a rescaled TopK multiplies by.
    assert_equals(sae, residuals(), (features / (0.3 if rescaled else 1), reconstruction, clear))
    assert sae.normalisation == "none"
    put(folder, config | {"normalize_activations": "none"}, weights)
    assert SCALED in refusal(folder, activation_scale=0.3)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        assert "between 1e-09 and 1e+09" in refusal(folder, activation_scale=scale)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("normalisation", [None, False, "layer_norm", "constant_norm_rescale"])
def test_files_from_before_v6(architecture: str, normalisation: Any, tmp_path: Path) -> None:
    """A flat config, with the keys and defaults of its time, means the same as one in v6."""
    weights = tensors_of(architecture)
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    own = topk if architecture == "topk" else {"architecture": architecture}
    changes = {"hook_name": ..., "hook_point": "blocks.4.hook_resid_pre", "normalize_activations": normalisation}
    sae = load_sae(put(tmp_path / "sae", flat_config(**own, **changes), weights))
    assert (sae.hook_name, sae.architecture, sae.model_name) == ("blocks.4.hook_resid_pre", architecture, "gpt2")
    assert_equals(sae, residuals(), formula(architecture, weights, residuals(), normalisation or "none"))


def test_a_finetuned_sae_from_before_v6(tmp_path: Path) -> None:
    """Its activations are multiplied by scaling_factor before decoding; without the flag nobody can tell."""
    weights = tensors_of("standard")
    factor = torch.linspace(0.5, 2, D_SAE)
    folder = put(tmp_path / "a", flat_config(finetuning_scaling_factor=True), weights | {"scaling_factor": factor})
    rescaled = weights | {"W_dec": weights["W_dec"] * factor[:, None]}
    assert_equals(load_sae(folder), residuals(), formula("standard", rescaled, residuals()))
    (folder / CONFIG).write_text(json.dumps(flat_config()))
    assert "scaling_factor" in refusal(folder)
    put(folder, flat_config(), weights | {"scaling_factor": torch.ones(D_SAE)})
    assert_equals(load_sae(folder), residuals(), formula("standard", weights, residuals()))


@pytest.mark.parametrize(
    ("name", "layer"),
    [("layers.15", 15), ("h.5", 5), ("model.layers.15", 15), ("gpt_neox.layers.0", 0), ("transformer.h.7", 7)],
)
def test_sparsify_files(name: str, layer: int, tmp_path: Path) -> None:
    """A folder named after a block holds a TopK SAE of its output."""
    named, weights = sparsify_tensors()
    sae = load_sae(put(tmp_path / name, sparsify_config(), named, SPARSIFY_WEIGHTS))
    assert (sae.layer, sae.architecture, sae.k) == (layer, "topk", K)
    assert_equals(sae, residuals(), formula("topk", weights, residuals()))


def test_sparsify_counts_latents_by_the_expansion_factor(tmp_path: Path) -> None:
    """num_latents 0, or none in an older file, means d_in·expansion_factor; so does an activation that is left out."""
    named, weights = sparsify_tensors(d_sae=4 * D_MODEL)
    for i, changes in enumerate([{"num_latents": 0}, {"num_latents": ..., "activation": ..., "signed": False}]):
        config = sparsify_config(expansion_factor=4, **changes)
        sae = load_sae(put(tmp_path / str(i) / "layers.2", config, named, SPARSIFY_WEIGHTS))
        features, reconstruction, clear = formula("topk", weights, residuals())
        np.testing.assert_allclose(dense(sae.encode(residuals()), 48)[clear], features[clear], atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(sae.reconstruct(residuals())[clear], reconstruction[clear], atol=2e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ round trips


def assert_same(one: SparseAutoencoder, other: SparseAutoencoder, tolerance: float = 1e-6) -> None:
    """Equal activations, reconstructions and notes."""
    x = residuals(3)
    np.testing.assert_allclose(dense(one.encode(x)), dense(other.encode(x)), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(one.reconstruct(x), other.reconstruct(x), rtol=tolerance, atol=10 * tolerance)
    for name in ("layer", "k", "architecture", "normalisation", "norm_median", "model_name", "metadata"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("quartiles", "mean"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(("architecture", "normalisation"), KINDS)
def test_every_sae_survives_saelens_format(architecture: str, normalisation: str, tmp_path: Path) -> None:
    """Written and read, an SAE is the same, quartiles and mean included, and twice the same as once."""
    sae = make_sae(architecture, normalisation)
    save_sae(sae, tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    assert_same(loaded, sae)
    save_sae(loaded, tmp_path / "again")
    assert_same(load_sae(tmp_path / "again"), sae)
    config = json.loads((tmp_path / "sae" / CONFIG).read_text())
    assert config["metadata"]["sae_lens_version"].startswith("6."), "without it SAELens drops the metadata"
    names = {"W_enc", "W_dec", "b_dec", *BIASES.get(architecture, ("b_enc",))}
    assert set(load_file(tmp_path / "sae" / WEIGHTS)) == names
    assert ("k" in config) == (architecture == "topk")


def test_sparsify_round_trip(tmp_path: Path) -> None:
    """A TopK SAE goes to sparsify and back with all that belongs to it; the folder tells the layer to sparsify."""
    sae = make_sae("topk")
    folder = save_sparsify(sae, tmp_path / "out")
    assert folder == tmp_path / "out" / "layers.3"
    assert_same(load_sae(folder), sae)
    assert save_sparsify(sae, tmp_path / "h.3") == tmp_path / "h.3"
    config = json.loads((folder / CONFIG).read_text())
    assert config["num_latents"] == D_SAE
    assert config["normalize_decoder"] is False
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / SPARSIFY_WEIGHTS).items()}
    wide, narrow = (D_SAE, D_MODEL), (D_MODEL,)
    assert shapes == {"encoder.weight": wide, "encoder.bias": (D_SAE,), "W_dec": wide, "b_dec": narrow}
    renamed = folder.rename(tmp_path / "renamed")
    assert load_sae(renamed).layer == 3, "the hook point is in our own metadata too"


@pytest.mark.parametrize(("architecture", "normalisation"), [kind for kind in KINDS if kind != ("topk", "none")])
def test_sparsify_has_no_words_for_others(architecture: str, normalisation: str, tmp_path: Path) -> None:
    """What sparsify cannot say is not written."""
    with pytest.raises(UsageError, match="saelens"):
        save_sparsify(make_sae(architecture, normalisation), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_precision_keeps_the_mean(tmp_path: Path) -> None:
    """Weights and quartiles are rounded, the mean is not: it is small, and may exceed float16."""
    sae = make_sae("jumprelu", mean=torch.full((D_MODEL,), 1e5))
    save_sae(sae, tmp_path / "sae", torch.float16)
    assert torch.equal(load_sae(tmp_path / "sae").mean, sae.mean)
    assert load_file(tmp_path / "sae" / WEIGHTS)["threshold"].dtype == torch.float16
    with pytest.raises(ElwError, match="threshold"):
        save_sae(make_sae("jumprelu", threshold=torch.full((D_SAE,), 7e4)), tmp_path / "b", torch.float16)


def test_a_crash_while_writing_leaves_no_other_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before any of its steps, saving over an SAE leaves the old one, the new one, or none that loads."""
    old, new = make_sae("topk"), make_sae("jumprelu", seed=1)
    outcomes = []
    for steps in range(6):
        folder = tmp_path / str(steps)
        save_sae(old, folder)
        left = iter([True] * steps + [False] * 9)

        def failing(action: Callable[..., Any], left: Iterator[bool] = left) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if not next(left):
                    raise KeyboardInterrupt
                return action(*args, **kwargs)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", failing(os.replace))
            patched.setattr(Path, "unlink", failing(Path.unlink))
            with contextlib.suppress(KeyboardInterrupt):
                save_sae(new, folder)
        try:
            loaded = load_sae(folder)
        except UsageError:
            outcomes.append("none")
            continue
        outcomes.append(loaded.architecture)
        assert_same(loaded, old if loaded.architecture == "topk" else new)
    assert outcomes[0] == "topk"
    assert "none" in outcomes


def test_the_identity_follows_whatever_changes_activations(tmp_path: Path) -> None:
    """Another architecture on the same tensors, another normalisation or scale is another SAE; another name is not."""
    weights = tensors_of("jumprelu")
    hashes = set()
    for config, options in [
        (saelens_config("jumprelu"), {}),
        (saelens_config("standard"), {}),
        (saelens_config("topk"), {}),
        (saelens_config("topk", k=K + 1), {}),
        (saelens_config("standard", apply_b_dec_to_input=False), {}),
        (saelens_config("standard", normalize_activations="layer_norm"), {}),
        (saelens_config("standard", normalize_activations="constant_norm_rescale"), {}),
        (saelens_config("standard", normalize_activations=SCALED), {"activation_scale": 1.0}),
        (saelens_config("standard", normalize_activations=SCALED), {"activation_scale": 0.5}),
    ]:
        hashes.add(load_sae(put(tmp_path / "sae", config, weights), **options).sha256)
    assert len(hashes) == 9
    renamed = saelens_config("standard", metadata={"model_name": "x"})
    assert load_sae(put(tmp_path / "sae", renamed, weights)).sha256 in hashes


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"architecture": "gated"}, "b_gate"),
        ({"architecture": "jumprelu"}, "threshold"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit'"),
        ({"normalize_activations": "layer_norm", "d_in": 1}, "d_in is 1"),
        ({"rescale_acts_by_decoder_norm": True}, "only 'topk'"),
        ({"activation_fn": "tanh-relu"}, "'tanh-relu'"),
        ({"metadata": {"hook_name": "blocks.3.attn.hook_q"}}, "'blocks.3.attn.hook_q'"),
        ({"metadata": {"hook_name": "blocks.3.mlp.hook_in"}}, "a transcoder may read there"),
        ({"d_sae": 10**13}, "(12, 10000000000000)"),
        ({"d_in": 10**13}, "shape"),
    ],
)
def test_refused_saelens_files(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    """By name, and without making room for what a config claims."""
    assert found in refusal(put(tmp_path / "sae", saelens_config("standard", **changes), tensors_of("standard")))


@pytest.mark.parametrize("said", [True, False, ...])
def test_older_files_that_say_nothing_were_trained_with_bos(said: Any, tmp_path: Path) -> None:
    """As SAELens had it by default."""
    sae = load_sae(put(tmp_path / "sae", flat_config(prepend_bos=said), tensors_of("standard")))
    assert sae.bos == (said is not False)


@pytest.mark.parametrize(
    "name", ["model.layers.3", "transformer.h.3", "gpt_neox.layers.3", "layers.3", "model.language_model.layers.3"]
)
def test_a_block_by_its_name_in_hugging_face(name: str, tmp_path: Path) -> None:
    config = saelens_config("standard", metadata={"hook_name": name})
    assert load_sae(put(tmp_path / "sae", config, tensors_of("standard"))).layer == 3


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"activation_fn_str": "tanh-relu"}, "'tanh-relu'"),
        ({"activation_fn_str": "topk"}, "k is None"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5, "postact_fn": "identity"}}, "postact_fn"),
        ({"normalize_activations": True}, "--activation-scale"),
        ({"hook_name": "blocks.3.attn.hook_q"}, "hook_q"),
        ({"finetuning_scaling_factor": "yes"}, "'yes'"),
    ],
)
def test_refused_files_from_before_v6(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    """Older settings that have no meaning here, or not a certain one."""
    assert found in refusal(put(tmp_path / "sae", flat_config(**changes), tensors_of("standard")))


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        ("layers.3", {"activation": "groupmax"}, "'groupmax'"),
        ("layers.3", {"signed": True}, "signed"),
        ("layers.3", {"transcode": True}, "transcode"),
        ("layers.3", {"skip_connection": True}, "skip_connection"),
        ("layers.3", {"num_latents": 41}, "(40, 12)"),
        ("layers.3", {"num_latents": 0, "expansion_factor": 10**12}, "shape"),
        ("layers.3", {"k": 0}, "k is 0"),
        ("layers.3.mlp.act", {}, "'layers.3.mlp.act'"),
        ("embed_tokens", {}, "'embed_tokens'"),
        ("my-sae", {}, "--layer"),
    ],
)
def test_refused_sparsify_files(name: str, changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    """By the name of the setting or of the folder."""
    folder = put(tmp_path / name, sparsify_config(**changes), sparsify_tensors()[0], SPARSIFY_WEIGHTS)
    assert found in refusal(folder)


def test_a_layer_can_be_given_where_the_files_are_silent(tmp_path: Path) -> None:
    """And not where they say another, or name a place inside a block."""
    named, _ = sparsify_tensors()
    assert load_sae(put(tmp_path / "mine", sparsify_config(), named, SPARSIFY_WEIGHTS), layer=4).layer == 4
    assert "layer 4 was given" in refusal(put(tmp_path / "h.3", sparsify_config(), named, SPARSIFY_WEIGHTS), layer=4)
    inside = put(tmp_path / "h.3.mlp.act", sparsify_config(), named, SPARSIFY_WEIGHTS)
    assert "a block or a part of it" in refusal(inside, layer=3)
    part = load_sae(put(tmp_path / "h.3.mlp", sparsify_config(), named, SPARSIFY_WEIGHTS), layer=3)
    assert part.hook_name == "blocks.3.mlp.hook_out"
    config = saelens_config("standard", metadata={"hook_name": None})
    folder = put(tmp_path / "silent", config, tensors_of("standard"))
    assert load_sae(folder, layer=4).layer == 4
    put(folder, saelens_config("standard"), tensors_of("standard"))
    assert "layer 4 was given" in refusal(folder, layer=4)


def test_folders_that_only_hold_pickles(tmp_path: Path) -> None:
    """The pickle is named, and not read."""
    torch.save(tensors_of("standard"), tmp_path / "sae_weights.pt")
    assert "sae_weights.pt is a pickle" in refusal(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(saelens_config("standard")))
    assert "sae_weights.pt is a pickle" in refusal(tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(UsageError, match="is a pickle"):
        sae_folders(tmp_path)


def test_numbers_that_leave_float32(tmp_path: Path) -> None:
    """Integers, and factors whose product is no number, are refused instead of giving NaN."""
    weights = tensors_of("gated") | {"r_mag": torch.full((D_SAE,), 100.0)}
    assert "leaves the range" in refusal(put(tmp_path / "a", saelens_config("gated"), weights))
    weights = tensors_of("standard") | {"b_enc": torch.ones(D_SAE, dtype=torch.int64)}
    assert "int64" in refusal(put(tmp_path / "b", saelens_config("standard"), weights))


FORMATS = [*(f"saelens-{name}" for name in ARCHITECTURES), "flat", "sparsify"]


def built(folder: Path, form: str) -> tuple[Path, Path]:
    """A whole SAE of a format, with statistics; its folder and its weights file."""
    if form == "sparsify":
        name = SPARSIFY_WEIGHTS
        folder = put(folder / "layers.3", sparsify_config(), sparsify_tensors()[0], name)
    else:
        architecture = form.removeprefix("saelens-") if form != "flat" else "standard"
        config = flat_config() if form == "flat" else saelens_config(architecture)
        folder, name = put(folder, config, tensors_of(architecture)), WEIGHTS
    save_file({"mean": torch.zeros(D_MODEL), "activation_quartiles": torch.ones(D_SAE, 3)}, folder / STATISTICS)
    return folder, folder / name


def works_or_is_refused(folder: Path) -> bool:
    """Whether an SAE loads; then it must give numbers."""
    try:
        sae = load_sae(folder)
    except UsageError:
        return False
    x = torch.randn(3, sae.d_model)
    assert torch.isfinite(sae.reconstruct(x)).all()
    assert sae.encode(x).values.shape[0] == 3
    return True


@settings(max_examples=150)
@given(st.sampled_from(FORMATS), st.data())
def test_any_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    """Files cut anywhere, spoiled bytes, missing, misshapen or NaN tensors: a UsageError or a working SAE."""
    folder, weights = built(tmp_path_factory.mktemp("sae"), form)
    assert works_or_is_refused(folder)
    file = data.draw(st.sampled_from([weights, folder / CONFIG, folder / STATISTICS]))
    damage = data.draw(st.sampled_from(["cut", "byte", "missing", "shape", "nan", "pickle", "dtype"]))
    whole = file.read_bytes()
    if damage == "cut" or (file.name == CONFIG and damage not in ("byte", "pickle")):
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        assert not works_or_is_refused(folder)
        return
    if damage == "byte":
        place = data.draw(st.integers(0, min(len(whole), 600) - 1))
        file.write_bytes(whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :])
        works_or_is_refused(folder)
        return
    if damage == "pickle":
        file.write_bytes(pickle.dumps({"W_enc": [1.0]}))
        assert not works_or_is_refused(folder)
        return
    tensors = load_file(file)
    name = data.draw(st.sampled_from(sorted(tensors)))
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name].flatten()[:-1]
    elif damage == "dtype":
        tensors[name] = tensors[name].to(data.draw(st.sampled_from([torch.int32, torch.bool, torch.complex64])))
    else:
        tensors[name].view(-1)[data.draw(st.integers(0, tensors[name].numel() - 1))] = data.draw(
            st.sampled_from([float("nan"), float("inf")])
        )
    save_file(tensors, file.with_suffix(".new"))
    file.with_suffix(".new").rename(file)
    if file == weights:
        assert not works_or_is_refused(folder)
    else:
        works_or_is_refused(folder)  # missing statistics are none, and quartiles may be NaN


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["topk", "gated", "layer_norm", SCALED, "none", 10**30, -1]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["k", "elw", "hook_name"]), inner),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=250)
@given(st.sampled_from(FORMATS), st.data(), JSON)
def test_any_value_of_any_setting_is_refused_or_works(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject, value: Any
) -> None:
    """Whatever stands in a config, nothing but a UsageError comes out, and no room is made for what it claims."""
    folder, _ = built(tmp_path_factory.mktemp("sae"), form)
    config = json.loads((folder / CONFIG).read_text())
    further = ["rescale_acts_by_decoder_norm", "activation_fn_kwargs", "finetuning_scaling_factor", "signed"]
    key = data.draw(st.sampled_from([*config, *further, "metadata"]))
    config[key] = value
    (folder / CONFIG).write_text(json.dumps(config))
    works_or_is_refused(folder)


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_pull_back_is_the_transposed_jacobian(normalisation: str) -> None:
    """Jᵀv in closed form equals automatic differentiation of the normalisation, in float64."""
    sae = make_sae("standard", normalisation).to(torch.float64)
    x = residuals().double().requires_grad_(True)
    v = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if normalisation == "constant_norm_rescale":
        z = x * (D_MODEL**0.5 / x.norm(dim=1, keepdim=True))
    elif normalisation == "layer_norm":
        centred = x - x.mean(1, keepdim=True)
        z = centred / (centred.std(1, keepdim=True) + 1e-5)
    else:
        z = x
    (expected,) = torch.autograd.grad(z, x, v)
    torch.testing.assert_close(sae.pull_back(x.detach(), v), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("architecture", "normalisation"), KINDS)
def test_the_encoders_gradient_equals_autograd(architecture: str, normalisation: str, tmp_path: Path) -> None:
    """½∂Σa²/∂x of the format's own formula, its normalisation included, in float64 to 1e-9."""
    weights = {name: tensor.double() for name, tensor in tensors_of(architecture).items()}
    config = saelens_config(architecture, normalize_activations=normalisation)
    sae = load_sae(put(tmp_path / "sae", config, tensors_of(architecture))).to(torch.float64)
    x = residuals().double().requires_grad_(True)
    if normalisation == "constant_norm_rescale":
        z = x * (D_MODEL**0.5 / x.norm(dim=1, keepdim=True))
    elif normalisation == "layer_norm":
        centred = x - x.mean(1, keepdim=True)
        z = centred / (centred.std(1, keepdim=True) + 1e-5)
    else:
        z = x
    z = z - weights["b_dec"]
    if architecture == "gated":
        gate = (z @ weights["W_enc"] + weights["b_gate"] > 0).double()
        a = gate * torch.relu(z @ (weights["W_enc"] * weights["r_mag"].exp()) + weights["b_mag"])
    else:
        h = z @ weights["W_enc"] + weights["b_enc"]
        if architecture == "topk":
            kept = torch.zeros_like(h).scatter_(1, h.topk(K).indices, 1.0)
        else:
            kept = (h > weights["threshold"]).double() if architecture == "jumprelu" else torch.ones_like(h)
        a = torch.relu(h) * kept
    (expected,) = torch.autograd.grad(0.5 * a.square().sum(), x)
    x = x.detach()
    found = sae.encoder_gradient(x, sae.encode(x))
    # The weights were folded in float32, and once multiplied in: to the last digits of that.
    tolerance = 1e-5 if architecture == "gated" else 1e-9
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0


@pytest.mark.parametrize(("architecture", "normalisation"), KINDS)
def test_one_unit_of_a_feature_adds_its_scaled_row(architecture: str, normalisation: str) -> None:
    """Decoding with one unit more of feature j moves x̂ by s_t·d_j, s_t being the token's own."""
    sae = make_sae(architecture, normalisation).to(torch.float64)
    x = residuals().double()
    activations = sae.encode(x)
    for feature in (0, 17):
        unit = torch.ones(len(x), 1, dtype=torch.float64)
        more = SparseActivations(
            torch.cat([activations.values, unit], 1),
            torch.cat([activations.indices, torch.full((len(x), 1), feature)], 1),
        )
        moved = sae.decode(more, x) - sae.decode(activations, x)
        scales = sae.token_scales(x)
        assert (scales is None) == (normalisation == "none")
        expected = sae.W_dec[feature] * (torch.ones(len(x), 1) if scales is None else scales[:, None])
        torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-10)
    if normalisation != "none":
        with pytest.raises(ValueError, match="give x"):
            sae.decode(activations)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_residuals_without_extent_give_numbers(normalisation: str) -> None:
    """A residual of zeros, or of equal numbers, is encoded, decoded and pulled back without NaN."""
    sae = make_sae("standard", normalisation)
    x = torch.stack([torch.zeros(D_MODEL), torch.ones(D_MODEL)])
    assert torch.isfinite(sae.reconstruct(x)).all()
    assert torch.isfinite(sae.pull_back(x, torch.ones_like(x))).all()


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(("architecture", "normalisation"), KINDS)
def test_chunks_change_nothing(architecture: str, normalisation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens are encoded at once, each has the same activations; so it has under a mask, or alone."""
    sae, x = make_sae(architecture, normalisation), residuals(n=101)
    whole = dense(sae.encode(x))
    mask = torch.arange(101) % 3 > 0
    for numbers in (1, 7 * D_SAE, 10_000_000):
        monkeypatch.setattr(sae_module, "CHUNK_NUMBERS", numbers)
        np.testing.assert_allclose(dense(sae.encode(x)), whole, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dense(sae.encode(x, mask)), whole * mask[:, None].numpy(), rtol=1e-5, atol=1e-5)
        assert sae.encode(x[:0]).values.shape[0] == sae.encode(x[:0], mask[:0]).values.shape[0] == 0
    n_slots = sae.encode(x).values.shape[1]
    assert n_slots == (K if architecture == "topk" else (whole > 0).sum(1).max())


class _Largest(TorchDispatchMode):
    """Notes the most numbers that any operation's result has memory for."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_dense_matrix_is_held(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding many tokens never makes a tensor of all of them by all features."""
    monkeypatch.setattr(sae_module, "CHUNK_NUMBERS", 20_000)
    quiet = {"b_enc": torch.full((D_SAE,), -6.0)} if architecture != "topk" else {}  # few features are active
    sae, x = make_sae(architecture, **quiet), residuals(n=20_000)
    with _Largest() as largest:
        activations = sae.encode(x)
    assert largest.numbers <= max(20_000, x.numel(), activations.values.numel()) < x.shape[0] * D_SAE / 2


def test_the_encoder_is_kept_once() -> None:
    """W_enc and its rows are one tensor, also in copies."""
    sae = make_sae("topk")
    for own in (sae, replace(sae, layer=4)):
        assert own.encoder_rows.data_ptr() == own.W_enc.data_ptr() == sae.W_enc.data_ptr()
        assert own.encoder_rows.is_contiguous()


def test_parts_that_do_not_go_together() -> None:
    """A k without topk, or a threshold that is lacking, is a programmer's error."""
    for changes in ({"k": None}, {"threshold": torch.zeros(D_SAE)}, {"architecture": "other"}, {"normalisation": "x"}):
        with pytest.raises(ValueError, match=r"SAE|k is|threshold"):
            make_sae("topk", **changes)
    with pytest.raises(ValueError, match="threshold"):
        make_sae("jumprelu", threshold=None)


# ------------------------------------------------------------------------------------------------ ingest


def tiny_sae(architecture: str, normalisation: str, layer: int) -> SparseAutoencoder:
    """An SAE of the tiny model, quiet enough to be sparse."""
    own = tensors_of("jumprelu" if architecture == "gated" else architecture, layer, d_model=32, d_sae=64)
    if architecture != "topk":
        own["b_enc"] = own["b_enc"] - 1
    return SparseAutoencoder(
        layer=layer, k=K if architecture == "topk" else None, architecture=architecture, normalisation=normalisation,
        norm_median=None, **own,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kinds",
    [
        {1: ("jumprelu", "none"), 2: ("standard", "layer_norm")},
        {1: ("gated", "constant_norm_rescale"), 2: ("topk", "layer_norm")},
    ],
    ids=["jumprelu-and-layer_norm", "gated-and-topk"],
)
def test_ingest_equals_numpy(
    kinds: dict[int, tuple[str, str]], tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stored activations, g, scores and the calibration are those of the formula on the model's own residuals.

    ∂E/∂x is taken as stored, and is the raw gradient: g is −⟨∂E/∂x, s_t·d_j⟩.
    """
    monkeypatch.setattr(calibration, "CALIBRATION_TOKENS", 10**9)
    model = tiny("llama")
    for layer, kind in kinds.items():
        save_sae(tiny_sae(*kind, layer), tmp_path / "saes" / str(layer))
    db = tmp_path / "formats.duckdb"
    options = IngestOptions(
        db=db, model=str(model.folder), saes=(tmp_path / "saes",), context_length=32, dtype="float32",
        store_gradients=True,
    )  # fmt: skip
    ingest([small_corpus], options)
    module = model.load().module
    with Warehouse(db) as warehouse:
        facts = warehouse.sql("SELECT layer, architecture, k FROM saes ORDER BY layer").fetchall()
        assert facts == [(layer, kind[0], K if kind[0] == "topk" else None) for layer, kind in kinds.items()]
        contexts = warehouse.sql(
            "SELECT token_id // 32, list(vocabulary_id ORDER BY token_id) FROM tokens GROUP BY 1 ORDER BY 1"
        ).fetchall()
        hidden = {}
        with torch.no_grad():
            for context, ids in contexts:
                output = module(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
                for layer in kinds:
                    for position, x in enumerate(output.hidden_states[layer + 1][0]):
                        hidden[layer, context * 32 + position] = x
        for layer, (architecture, normalisation) in kinds.items():
            weights = load_file(tmp_path / "saes" / str(layer) / WEIGHTS)
            rows = warehouse.sql(
                "SELECT token_id, vector FROM gradients WHERE layer = $layer AND energy = 'nll' ORDER BY token_id",
                layer=layer,
            ).numpy()  # fmt: skip
            token_ids = rows["token_id"]
            x = torch.stack([hidden[layer, int(token)] for token in token_ids])
            features, _, clear = formula(architecture, weights, x, normalisation)
            _, scale, _ = normalised(x.double().numpy(), normalisation)
            g = -(scale * np.stack(list(rows["vector"])).astype(np.float64)) @ weights["W_dec"].double().numpy().T
            stored = warehouse.sql(
                "SELECT token_id, feature, activation, g_nll FROM activations WHERE layer = $layer", layer=layer
            ).numpy()
            places = np.searchsorted(token_ids, stored["token_id"])
            a, stored_g = np.zeros_like(features), np.zeros_like(features)
            a[places, stored["feature"]] = stored["activation"]
            stored_g[places, stored["feature"]] = stored["g_nll"]
            np.testing.assert_allclose(a[clear], features[clear], rtol=1e-3, atol=1e-3)
            scatter = np.abs(g).max()
            np.testing.assert_allclose(stored_g, g * (a > 0), rtol=1e-4, atol=1e-5 * scatter)
            assert (stored_g != 0).sum() > 1000

            found = warehouse.sql(
                "SELECT feature, score, attribution FROM efas WHERE layer = $layer AND energy = 'nll' "
                "AND gradient = 'decoder' AND category = 'all' ORDER BY feature",
                layer=layer,
            ).fetchall()  # fmt: skip
            compared = 0
            for feature, score, attribution in found:
                if np.ptp(a[:, feature]) > 0:
                    expected = stats.pearsonr(a[:, feature], g[:, feature]).statistic
                    assert score == pytest.approx(expected, abs=2e-6), feature
                    products = a[:, feature] * g[:, feature]
                    assert attribution == pytest.approx(products.sum(), abs=1e-5 * np.abs(products).sum())
                    compared += 1
            assert compared > 30
            means = warehouse.sql(
                "SELECT g_mean, g_sd FROM calibration WHERE layer = $layer AND energy = 'nll' ORDER BY feature",
                layer=layer,
            ).numpy()  # fmt: skip
            np.testing.assert_allclose(means["g_mean"], g.mean(0), atol=1e-5 * scatter)
            np.testing.assert_allclose(means["g_sd"], g.std(0), rtol=1e-4)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hopfield_equals_finite_differences(architecture: str, normalisation: str, tiny: Callable[..., Any]) -> None:
    """The energy that ingest reads falls along its gradient as the gradient says, through every normalisation."""
    model = tiny("llama").load()
    sae = tiny_sae(architecture, normalisation, 1)
    tokens = torch.randint(1, 512, (2, 12), generator=torch.Generator().manual_seed(0))
    everything = torch.ones(2, 12, dtype=torch.bool)
    forward = run_forward(model, {1: sae}, tokens, torch.tensor([12, 12]), lambda _layer, _norms: everything)
    reading = Hopfield().read(forward)
    x = forward.residuals[1].detach().double().view(-1, 32)
    exact = sae.to(torch.float64)
    energy, gradient = reading.values[1].double().view(-1), reading.gradients[1].double().view(-1, 32)
    torch.testing.assert_close(energy, -0.5 * exact.encode(x).values.square().sum(1), rtol=1e-4, atol=1e-5)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm(dim=1, keepdim=True)
    step = 1e-6
    above, below = (-0.5 * exact.encode(x + sign * step * direction).values.square().sum(1) for sign in (1, -1))
    slope = (above - below) / (2 * step)
    # A feature that switches within the step has no slope there.
    torch.testing.assert_close(
        (gradient * direction).sum(1), slope, rtol=1e-3, atol=1e-3 * float(slope.abs().median() + 1e-9)
    )
    assert (forward.scales[1] is None) == (normalisation == "none")


# ------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own."""
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sparsify_for_tiny(folder: Path) -> Path:
    """A sparsify folder that fits the tiny model."""
    own = tensors_of("topk", d_model=32, d_sae=64)
    named = {"encoder.weight": own["W_enc"].T, "encoder.bias": own["b_enc"]}
    named |= {name: own[name] for name in ("W_dec", "b_dec")}
    return put(folder, sparsify_config(num_latents=64, d_in=32), named, SPARSIFY_WEIGHTS)


def test_an_imported_sae_is_registered_and_used(
    cache: Path, tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Import prints the copy's folder, list shows it, and ingest takes it by that path, as it takes the original."""
    model = tiny("llama")
    original = sparsify_for_tiny(tmp_path / "hub" / "layers.1")
    words = ["sae", "import", str(original), "--model", str(model.folder), "--calibrate", str(small_corpus)]
    assert main(words) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == registered_folder(str(model.folder))
    assert folder.is_relative_to(cache / "saes")
    copy, sae = load_sae(folder), load_sae(original)
    assert copy.layer == 1
    assert copy.model_name == str(model.folder)
    assert copy.metadata["imported_sha256"] == sae.sha256
    x = residuals(d_model=32)
    assert torch.equal(copy.encode(x).values, sae.encode(x).values)
    assert main(words) == 0, "the same again is no error"
    assert Path(capsys.readouterr().out.strip()) == folder

    assert main(["sae", "list", "--model", str(model.folder), "--format", "jsonl"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["source"], row["layer"], row["architecture"], row["features"]) == ("registered", 1, "topk", 64)
    assert row["folder"] == str(folder)

    medians = []
    for path in (folder, original.parent):
        db = tmp_path / f"{path.name}.duckdb"
        words = ["ingest", str(small_corpus), "--db", str(db), "--model", str(model.folder), "--sae", str(path)]
        assert main([*words, "--dtype", "float32", "--max-tokens", "1"]) == 0
        with Warehouse(db) as warehouse:
            medians.append(warehouse.sql("SELECT norm_median FROM saes").value())
    assert medians[0] == copy.norm_median
    assert medians[0] == medians[1], "the corpus is smaller than either sample"


def test_imports_that_do_not_fit(
    cache: Path, tiny: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A width or layer that the model lacks, a scale that is missing, an output in use: one sentence each, no file."""
    model = str(tiny("llama").folder)
    fits = sparsify_for_tiny(tmp_path / "layers.1")
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    unfolded = put(
        tmp_path / "unfolded", saelens_config("standard", normalize_activations=SCALED), tensors_of("standard")
    )
    narrow = put(tmp_path / "narrow", saelens_config("standard"), tensors_of("standard"))
    for words, said in [
        ([str(narrow)], "width 12"),
        ([str(sparsify_for_tiny(tmp_path / "layers.9"))], "no layer 9"),
        ([str(unfolded)], "--activation-scale"),
        ([str(fits), "--activation-scale", "2"], SCALED),
        ([str(fits), "--layer", "2"], "layer 2 was given"),
        ([str(fits), "--output", str(used)], "exists already"),
        ([str(tmp_path / "nowhere")], "not an SAE folder"),
    ]:
        assert main(["sae", "import", *words, "--model", model]) == 2, words
        out, err = capsys.readouterr()
        assert said in err, words
        assert not out
    assert not (cache / "saes").exists()
    assert sorted(path.name for path in used.iterdir()) == ["notes.txt"]


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both formats, in either precision; what sparsify cannot hold is refused."""
    save_sae(make_sae("topk"), tmp_path / "topk")
    save_sae(make_sae("gated", "layer_norm"), tmp_path / "gated")
    words = ["sae", "export", str(tmp_path / "topk"), "--format", "sparsify", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "out" / "layers.3"
    assert_same(load_sae(folder), make_sae("topk", mean=load_sae(folder).mean, quartiles=load_sae(folder).quartiles))
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    words = ["sae", "export", str(folder), "--format", "saelens", "--output", str(tmp_path / "back"), "--half"]
    assert main(words) == 0
    assert load_file(tmp_path / "back" / WEIGHTS)["W_enc"].dtype == torch.float16
    words = ["sae", "export", str(tmp_path / "gated"), "--format", "sparsify", "--output", str(tmp_path / "no")]
    assert main(words) == 2
    assert "layer_norm" in capsys.readouterr().err


def test_a_folder_of_sparsify_folders(tmp_path: Path) -> None:
    """--sae finds them as it finds SAELens'."""
    for name in ("layers.3", "layers.10"):
        put(tmp_path / name, sparsify_config(), sparsify_tensors()[0], SPARSIFY_WEIGHTS)
    save_sae(make_sae("gated"), tmp_path / "mine")
    assert [load_sae(folder).layer for folder in sae_folders(tmp_path)] == [10, 3, 3]
