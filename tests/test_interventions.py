"""Interventions: a patched pass against the same edit made from scratch, predictions against exact ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from energy_lens.analysis.interventions.baseline import Baseline
from energy_lens.analysis.interventions.edits import KINDS, Edit, Outcome, Patches
from energy_lens.analysis.interventions.predictors import (
    SharedGradients,
    predict,
    predict_along_path,
    predict_by_hessian,
)
from energy_lens.errors import UsageError
from energy_lens.ingest.model.unembedding import label_draws, sign_draws
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.ingest.sae.formats import load_sae

LAYER = 1
CONTEXTS = [np.arange(5, 25, dtype=np.int32), np.array([7, 40, 7, 99, 3, 40, 8, 7, 7], dtype=np.int32)]
EDITS = [
    Edit("ablate"), Edit("scale", 3.0), Edit("scale", 0.5), Edit("clamp", 4.0), Edit("add", -1.0),
    Edit("clamp", 4.0, where="all"), Edit("add", 2.0, where="all"),
]  # fmt: skip


def load(tiny: Any, dtype: torch.dtype = torch.float32, n_probes: int = 2) -> Baseline:
    sae = load_sae(tiny.saes / f"layer_{LAYER}")
    model = tiny.load(dtype)
    medians = torch.tensor([model.hidden(torch.from_numpy(ids.astype(np.int64))[None]).norm() for ids in CONTEXTS])
    sae.norm_median = float(medians.median())  # any that leaves ordinary tokens in
    return Baseline(model, sae, CONTEXTS, range(len(CONTEXTS)), n_probes)


def features_of(baseline: Baseline, n: int) -> list[int]:
    """Features that are active in the batch, the most frequent first."""
    values, indices = baseline.activations
    return torch.bincount(indices[values > 0]).argsort(descending=True)[:n].tolist()


def from_scratch(baseline: Baseline, x_edit: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits [context, position, vocabulary] of the whole Hugging Face model with the block's output edited."""
    model = baseline.model

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (x_edit(output[0]), *output[1:])
        return x_edit(output)

    handle = model.blocks[LAYER].register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits: Tensor = model.module(input_ids=baseline.tokens, use_cache=False).logits
    finally:
        handle.remove()
    return logits


def check_outcome(baseline: Baseline, patches: Patches, outcome: Outcome, edited_logits: Tensor) -> None:
    """Every number of an outcome against the logits of the model with and without the edit."""
    plain = from_scratch(baseline, lambda x: x).double().log_softmax(-1)
    edited = edited_logits.double().log_softmax(-1)
    for i, context in enumerate(patches.context.tolist()):
        n = int(baseline.lengths[context])
        for s in range(n - 1):
            after = bool(patches.edited[i, : s + 1].any())
            assert bool(outcome.looked_at[i, s]) == after
            p, q = plain[context, s], edited[context, s]
            following = int(baseline.tokens[context, s + 1])
            assert float(outcome.delta[i, s]) == pytest.approx(float(p[following] - q[following]), abs=1e-5)
            assert float(outcome.divergence[i, s]) == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)
            assert bool(outcome.top_changed[i, s]) == bool(p.argmax() != q.argmax())
        assert not outcome.looked_at[i, n - 1 :].any()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_patched_pass_is_that_of_the_edited_model(tiny: Callable[..., Any], architecture: str, edit: Edit) -> None:
    baseline = load(tiny(architecture))
    for feature in features_of(baseline, 2):
        a = baseline.activation(feature)
        where = baseline.included & ((a > 0) | (edit.where == "all"))
        target = {
            "ablate": 0 * a, "scale": a * (edit.value or 0), "clamp": 0 * a + (edit.value or 0),
            "add": a + (edit.value or 0),
        }[edit.kind]  # fmt: skip
        added = torch.where(where, target - a, 0)[..., None] * baseline.sae.W_dec[feature]
        patches = baseline.patches(edit, feature)
        assert len(patches) == int(where.any(1).sum()) > 0
        assert torch.equal(patches.edited, where[patches.context])
        edited = from_scratch(baseline, lambda x, added=added: x + added)
        check_outcome(baseline, patches, baseline.measure(patches), edited)


def test_excluded_tokens_are_never_edited(tiny: Callable[..., Any]) -> None:
    baseline = load(tiny("llama"))
    for edit in EDITS:
        patches = baseline.patches(edit, features_of(baseline, 1)[0])
        assert not patches.edited[:, 0].any()  # the first token is excluded
        assert not (patches.edited & ~baseline.included[patches.context]).any()
        assert not patches.change[~patches.edited].any()


def test_all_features_ablated_is_the_reconstruction_replaced_by_its_bias(tiny: Callable[..., Any]) -> None:
    baseline = load(tiny("llama"))
    sae, shape = baseline.sae, baseline.x.shape
    values, indices = baseline.activations
    active = indices[values > 0].unique().tolist()
    total = torch.zeros(shape)
    for feature in active:
        patches = baseline.patches(Edit("ablate"), feature)
        total[patches.context] += patches.displacement
    replaced = sae.b_dec - sae.decode(baseline.activations).view(shape)
    expected = torch.where(baseline.included[..., None], replaced, 0)
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)

    token = (0, 4)  # and the error term stays: x − x̂ + b_dec goes on
    one = torch.zeros(1, shape[1])
    one[0, token[1]] = 1
    patches = Patches(torch.tensor([0]), total[token][None], one, one.bool())

    def edit(x: Tensor) -> Tensor:
        error = x[token] - sae.reconstruct(x[token][None])[0]
        result = x.clone()
        result[token] = sae.b_dec + error
        return result

    check_outcome(baseline, patches, baseline.measure(patches), from_scratch(baseline, edit))


def test_any_batch_of_patches_gives_the_same(tiny: Callable[..., Any]) -> None:
    baseline = load(tiny("llama"))
    patches = baseline.patches(Edit("add", 1.0, where="all"), 3)
    whole = baseline.measure(patches)
    parts = [baseline.measure(part) for part in patches.split(1)]
    torch.testing.assert_close(whole.delta, torch.cat([part.delta for part in parts]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_predictions_of_a_small_edit(tiny: Callable[..., Any], architecture: str) -> None:
    """In float64: the slope at 0 is first_order, the curve hessian, and the path's mean gradient the whole change."""
    baseline = load(tiny(architecture), torch.float64)
    feature = features_of(baseline, 1)[0]
    size = 1e-3

    def total(scale: float) -> Tensor:
        return baseline.measure(baseline.patches(Edit("scale", scale), feature)).delta.double().sum(1)

    up, down = total(1 + size), total(1 - size)
    patches = baseline.patches(Edit("ablate"), feature)
    first = predict(SharedGradients(baseline), patches)["first_order"]
    # Losses are kept in float32, so a difference of two is good to some 1e-6.
    torch.testing.assert_close(-(up - down) / (2 * size), first, atol=0.01, rtol=0.01)
    torch.testing.assert_close(
        predict_by_hessian(baseline, patches), second_order(baseline, patches), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        predict_along_path(baseline, patches, 40), baseline.measure(patches).delta.double().sum(1), atol=2e-3, rtol=2e-3
    )


def second_order(baseline: Baseline, patches: Patches) -> Tensor:
    """first_order + ½ δᵀHδ by central differences of the gradient."""
    step = 1e-3
    slopes = [
        (baseline.gradient_at(baseline.patched(patches, share), patches.context).double() * patches.displacement)
        .sum((1, 2))
        for share in (-step, 0.0, step)
    ]  # fmt: skip
    return slopes[1] + (slopes[2] - slopes[0]) / (2 * step) / 2


def test_one_feature_alone_on_the_joint_path(tiny: Callable[..., Any]) -> None:
    """Where a feature is all that is active, taking all away is taking it away, and the joint gradient is its own."""
    own = tiny("llama")
    baseline = load(own)
    sae = baseline.sae
    alone = SparseAutoencoder(
        sae.layer, 1, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, norm_median=sae.norm_median
    )  # fmt: skip
    baseline = Baseline(baseline.model, alone, CONTEXTS[:1], [0])
    shared = SharedGradients(baseline)
    patches = Patches(
        torch.tensor([0]), -shared.reconstruction[0, 4][None], torch.eye(20)[4][None], torch.eye(20)[4][None] > 0
    )
    assert torch.count_nonzero(shared.reconstruction[0, 4])
    others = shared.reconstruction.clone()
    others[0, 4] = 0
    # Only token 4 keeps its feature: the joint path is that of the single patch.
    shared.__dict__["reconstruction"] = shared.reconstruction - others
    joint = float(predict(shared, patches)["integrated"])
    assert joint == pytest.approx(float(predict_along_path(baseline, patches, 3)), rel=1e-4)


def test_labels_have_the_second_moment_of_signs(tiny: Callable[..., Any]) -> None:
    model = tiny("llama").load(torch.float64)
    hidden = torch.randn(1, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = []
    for draw in (sign_draws, label_draws):
        draws = draw(model, hidden, 20_000, np.random.default_rng(0))[:, 0]
        moments.append(draws.T @ draws / len(draws))
    assert (moments[0] - moments[1]).norm() < 0.06 * moments[0].norm()


def test_probes_predict_a_cost_where_the_gradient_is_none(tiny: Callable[..., Any]) -> None:
    """Curvature only ever adds, per token and per context; Σ over a context of one edited token is the same in both."""
    baseline = load(tiny("llama"), n_probes=3)
    for feature in features_of(baseline, 5):
        patches = baseline.patches(Edit("ablate"), feature)
        found = predict(SharedGradients(baseline), patches)
        for name in ("curvature", "labels"):
            assert (found[name] >= found["first_order"]).all()
            single = patches.edited.sum(1) == 1
            torch.testing.assert_close(found[name][single], found[f"{name}_context"][single])


@pytest.mark.parametrize(
    "arguments",
    [("remove",), ("scale",), ("ablate", 1.0), ("clamp", float("nan")), ("add", 1.0, "some"), ("ablate", None, "all")],
)
def test_edits_that_mean_nothing_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=r"\.$"):
        Edit(*arguments)
    assert set(KINDS) == {edit.kind for edit in EDITS}
