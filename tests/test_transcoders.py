"""SAEs inside blocks, and transcoders: files, activations, gradients and edits, each by a formula of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.edits import Edit
from energy_lens.analysis.interventions.example import edited
from energy_lens.cli import main
from energy_lens.errors import UsageError
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.model.sites import Site, harvest, width
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae, save_sparsify
from energy_lens.tests.conftest import TINY_WIDTH, Tiny

LAYER, D_SAE, K = 1, 48, 6
CONTEXTS = [np.arange(5, 25, dtype=np.int32), np.array([7, 40, 7, 99, 3, 40, 8, 7, 7], dtype=np.int32)]


def tensors(d_in: int = TINY_WIDTH, d_out: int = TINY_WIDTH, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = drawn(D_SAE, d_out)
    return {
        "W_enc": drawn(d_in, D_SAE) / d_in**0.5, "b_enc": 0.1 * drawn(D_SAE),
        "W_dec": rows / rows.norm(dim=1, keepdim=True), "b_dec": 0.1 * drawn(d_out), "W_skip": 0.1 * drawn(d_out, d_in),
        "threshold": drawn(D_SAE).abs() / 2,
    }  # fmt: skip


NAMES = {
    "transcoder": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "skip_transcoder": ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"),
    "jumprelu_transcoder": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "jumprelu_skip_transcoder": ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "threshold"),
}


def saelens(folder: Path, architecture: str, hook: str = "mlp.hook_in", **changes: Any) -> Path:
    """As SAELens writes it; changes go into the metadata."""
    weights = {name: tensor for name, tensor in tensors().items() if name in NAMES[architecture]}
    config = {
        "architecture": architecture, "d_in": TINY_WIDTH, "d_out": TINY_WIDTH, "d_sae": D_SAE, "dtype": "float32",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0", "hook_name": f"blocks.{LAYER}.{hook}",
            "hook_name_out": f"blocks.{LAYER}.hook_mlp_out", **changes,
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def sparsify(folder: Path, skip: bool) -> Path:
    weights = tensors()
    named = {
        "encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"], "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"], **({"W_skip": weights["W_skip"]} if skip else {}),
    }  # fmt: skip
    config = {
        "activation": "topk", "expansion_factor": 1, "normalize_decoder": True, "num_latents": D_SAE, "k": K,
        "multi_topk": False, "skip_connection": skip, "transcode": True, "d_in": TINY_WIDTH,
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(named, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def formula(x: Tensor, rule: str, skip: bool) -> tuple[Tensor, Tensor]:
    """Activations [n, d_sae] and ŷ [n, d_out], as the two packages compute them: nothing is subtracted from x."""
    weights = tensors()
    h = x @ weights["W_enc"] + weights["b_enc"]
    a = h.relu()
    if rule == "jumprelu":
        a = a * (h > weights["threshold"])
    if rule == "topk":
        a = torch.zeros_like(a).scatter_(1, h.topk(K).indices, h.topk(K).values.relu())
    made = a @ weights["W_dec"] + weights["b_dec"]
    return a, made + x @ weights["W_skip"].T if skip else made


def dense(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    activations = sae.encode(x)
    return torch.zeros(len(x), sae.d_sae).scatter_add_(1, activations.indices, activations.values)


def inputs() -> Tensor:
    return torch.randn(40, TINY_WIDTH, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("architecture", NAMES)
def test_saelens_transcoders(architecture: str, tmp_path: Path) -> None:
    sae = load_sae(saelens(tmp_path / "sae", architecture))
    rule, skip = "jumprelu" if "jumprelu" in architecture else "standard", "skip" in architecture
    a, made = formula(inputs(), rule, skip)
    assert (sae.site, sae.site_out, sae.is_transcoder) == (Site(LAYER, "mlp_in"), Site(LAYER, "mlp_out"), True)
    torch.testing.assert_close(dense(sae, inputs()), a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.reconstruct(inputs()), made, rtol=1e-4, atol=1e-5)
    save_sae(sae, tmp_path / "saved")
    again = load_sae(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "cfg.json").read_text())["architecture"] == architecture
    assert (again.site, again.site_out) == (sae.site, sae.site_out)
    torch.testing.assert_close(again.reconstruct(inputs()), made, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_transcoders(skip: bool, tmp_path: Path) -> None:
    sae = load_sae(sparsify(tmp_path / "layers.1.mlp", skip))
    a, made = formula(inputs(), "topk", skip)
    assert (sae.site, sae.site_out) == (Site(LAYER, "mlp_in"), Site(LAYER, "mlp_raw"))
    torch.testing.assert_close(dense(sae, inputs()), a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.reconstruct(inputs()), made, rtol=1e-4, atol=1e-5)
    for save in (save_sae, save_sparsify):  # which have no words for it
        with pytest.raises(UsageError):
            save(sae, tmp_path / "saved")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hook_name_out": "blocks.2.hook_mlp_out"}, "one block"), ({"hook_name_out": None}, "hook_name_out"),
        ({"hook_name_out": "blocks.1.mlp.hook_in"}, "hook_name_out"), ({"hook_name": "blocks.1.attn.hook_q"}, "hook_q"),
        ({"hook_name": "blocks.1.hook_mlp_in"}, "hook_mlp_in"),
    ],
)  # fmt: skip
def test_what_a_transcoder_must_say(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load_sae(saelens(tmp_path / "sae", "transcoder", **changes))


def test_a_point_is_part_of_the_identity(tmp_path: Path) -> None:
    hooks = ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid")
    hashes = {load_sae(saelens(tmp_path / hook, "transcoder", hook)).sha256 for hook in hooks}
    assert len(hashes) == len(hooks)


# ------------------------------------------------------------------------------------------------ on a model


def sae_at(model: LanguageModel, point: str, point_out: str | None = None, skip: bool = False) -> SparseAutoencoder:
    made = tensors(width(model, Site(LAYER, point)), width(model, Site(LAYER, point_out or point)), seed=4)
    return SparseAutoencoder(
        layer=LAYER, k=K, W_enc=made["W_enc"], b_enc=made["b_enc"], W_dec=made["W_dec"], b_dec=made["b_dec"],
        point=point, point_out=point_out, W_skip=made["W_skip"] if skip else None, norm_median=1e9,
    )  # fmt: skip


CASES = [("resid_pre", None), ("resid_mid", None), ("mlp_out", None), ("attn_out", None), ("z", None),
         ("mlp_in", "mlp_out"), ("resid_mid", "mlp_out")]  # fmt: skip


def loss_with(model: LanguageModel, layer_output: Callable[[Any], Any], name: str, tokens: Tensor) -> Tensor:
    """−log p of each next token [context, position] with a module's output changed, by the model's own code."""
    module = model.blocks[LAYER].get_submodule(name) if name else model.blocks[LAYER]
    handle = module.register_forward_hook(lambda _module, _inputs, output: layer_output(output))
    try:
        with torch.no_grad():
            p = model.module(input_ids=tokens, use_cache=False).logits.double().log_softmax(-1)
    finally:
        handle.remove()
    return -p[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


@pytest.mark.parametrize(("point", "point_out"), CASES)
def test_a_patch_is_the_same_edit_by_the_models_own_code(
    tiny: Callable[[str], Tiny], point: str, point_out: str | None
) -> None:
    """At a GPT-2-shaped model, where what is added by attention or network is a module's output."""
    model = tiny("gpt2").load()
    sae = sae_at(model, point, point_out)
    baseline = Baseline(model, sae, CONTEXTS, range(2))
    values, indices = baseline.activations
    feature = int(torch.bincount(indices[values > 0]).argmax())
    a = baseline.activation(feature)
    read = harvest(model, baseline.tokens, {0: sae.site})[0]
    inside = baseline.included
    expected_a = torch.zeros(a.shape)
    expected_a[inside] = dense(sae, read[inside])[:, feature]
    torch.testing.assert_close(a, expected_a)
    patches = baseline.patches(Edit("ablate"), feature)
    outcome = baseline.measure(patches)
    added = -a[..., None] * sae.W_dec[feature]
    # An addition to the stream after attention is one to what attention adds; one to a block's input, to the one below.
    if point == "z":
        projection = model.blocks[LAYER].attn.c_proj.weight
        name, added = "attn", added @ projection
    else:
        name = {"resid_mid": "attn", "attn_out": "attn", "mlp_out": "mlp", "resid_pre": ""}[point_out or point]

    def moved(output: Any) -> Any:
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    if point == "resid_pre":
        below = model.blocks[LAYER - 1].register_forward_hook(lambda _module, _inputs, output: moved(output))
        edited_losses = loss_with(model, lambda output: output, "", baseline.tokens)
        below.remove()
    else:
        edited_losses = loss_with(model, moved, name, baseline.tokens)
    plain = loss_with(model, lambda output: output, "", baseline.tokens)
    for i, context in enumerate(patches.context.tolist()):
        n = int(baseline.lengths[context]) - 1
        expected = (edited_losses - plain)[context, :n]
        torch.testing.assert_close(outcome.delta[i, :n].double(), expected, rtol=1e-3, atol=1e-5)
        assert expected.abs().max() > 1e-4
    with edited(model, sae, feature, Edit("ablate")) as seen:
        steered = loss_with(model, lambda output: output, "", baseline.tokens[:1])
    torch.testing.assert_close(seen[0].a[0, :19], a[0, :19])
    # As one steers, a text's last token is edited too: it moves no loss before it.
    torch.testing.assert_close(steered, edited_losses[:1], rtol=1e-3, atol=1e-5)


@pytest.fixture
def folders(tiny: Callable[[str], Tiny], tmp_path: Path) -> dict[str, Path]:
    """An SAE and transcoders for the Llama-shaped model."""
    model = tiny("llama").load()
    save_sae(sae_at(model, "mlp_out"), tmp_path / "mlp_out")
    return {
        "mlp_out": tmp_path / "mlp_out", "sparsify": sparsify(tmp_path / "layers.1.mlp", skip=True),
        "saelens": saelens(tmp_path / "saelens", "jumprelu_skip_transcoder", "ln2.hook_normalized", prepend_bos=False),
    }  # fmt: skip


@pytest.mark.parametrize("which", ["mlp_out", "sparsify", "saelens"])
def test_from_ingest_to_interventions(
    which: str, folders: dict[str, Path], tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    """g is that of autograd at the tensor where the features act, and everything after it runs."""
    db, model = tmp_path / "a.duckdb", tiny("llama").folder
    energies = "nll,hopfield" if which == "mlp_out" else "nll"
    words = ["ingest", str(small_corpus), "--model", str(model), "--sae", str(folders[which]), "--db", str(db)]
    assert main([*words, "--energies", energies, "--max-tokens", "3000", "--dtype", "float32"]) == 0
    sae = load_sae(folders[which])
    with duckdb.connect(str(db), read_only=True) as connection:
        stored = connection.execute("SELECT hook_name, hook_name_out FROM saes").fetchone()
        assert stored == (sae.hook_name, sae.site_out.hook_name if sae.is_transcoder else None)
        n, n_tests = connection.execute(
            "SELECT count(*), count(z) FROM efas WHERE energy = 'nll' AND gradient = 'decoder' AND category = 'all'"
        ).fetchone()
        assert min(n, n_tests) > 0
    assert main(["attractors", "--db", str(db), "--tokens", "64"]) == 0
    assert main(["intervene", "--db", str(db), "--features", "top:2", "--contexts", "4", "--probes", "1"]) == 0
    capsys.readouterr()
    assert main(["sae", "evaluate", str(small_corpus), "--model", str(model), "--sae", str(folders[which]), "--json",
                 "--max-tokens", "1000"]) == 0  # fmt: skip
    figures = json.loads(capsys.readouterr().out)
    assert figures
    assert main(["report", "--db", str(db), "--output", str(tmp_path / "report")]) == 0
    shown = (tmp_path / "report" / "research_report.html").read_text(encoding="utf-8")
    assert sae.hook_name in shown


def test_hopfield_of_a_transcoder_is_refused(
    folders: dict[str, Path], tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["ingest", str(small_corpus), "--model", str(tiny("llama").folder), "--sae", str(folders["saelens"])]
    for energies, said in (
        ("hopfield", "transcoder"),
        ("nll,logit_lens", "logit_lens"),
        ("attention", "attention"),
    ):
        assert main([*words, "--energies", energies, "--db", str(tmp_path / "a.duckdb")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "a.duckdb").exists()


def test_training_at_a_point(tiny: Callable[[str], Tiny], small_corpus: Path, tmp_path: Path) -> None:
    words = ["sae", "train", str(small_corpus), "--model", str(tiny("llama").folder), "--layers", "1"]
    words += ["--features", "32", "--k", "4", "--tokens", "2000", "--batch-size", "128", "--dtype", "float32"]
    assert main([*words, "--hook-point", "z", "-o", str(tmp_path / "z")]) == 0
    sae = load_sae(tmp_path / "z" / "layer_1")
    assert (sae.hook_name, sae.metadata["fvu"] < 1) == ("blocks.1.attn.hook_z", True)
    assert main([*words, "--hook-point", "mlp_in", "-o", str(tmp_path / "no")]) == 2
    assert main([*words, "--hook-point", "elsewhere", "-o", str(tmp_path / "no")]) == 2
