"""SAEBench's figures are those of a plain computation, the files are whole, and SAEBench itself confirms them.

benchmarks/saebench_parity.py compares with SAEBench's own evaluation; the last test here runs it where there is one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import energy_lens
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.saebench import measuring, weights
from energy_lens.analysis.saebench.export import export_saebench
from energy_lens.analysis.saebench.measuring import BATCH_CONTEXTS, Measurement, measure
from energy_lens.analysis.saebench.results import core_results, file_name, names
from energy_lens.analysis.saebench.sample import Sample, take_sample
from energy_lens.analysis.saebench.tokens import TokenFigures
from energy_lens.analysis.saebench.weights import largest_cosines, misc_figures, weight_figures
from energy_lens.cli.main import main
from energy_lens.errors import UsageError
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.sae.autoencoder import SparseAutoencoder
from energy_lens.tests.conftest import TINY_FEATURES, TINY_LAYERS, TINY_WIDTH, Tiny
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.export_folder import MANIFEST, exported_files

ARCHITECTURES = ("llama", "gpt2", "gpt_neox")
SPECIAL = 0  #: <|endoftext|> of the tiny tokenizer
LAYER = 1

#: A Python that has sae-bench.
OTHER_PYTHON = os.environ.get("ELW_TEST_SAEBENCH")

#: As the classes of SAEBench 0.6.0 name them, in their order.
KEYS = (
    "eval_type_id", "eval_config", "eval_id", "datetime_epoch_millis", "eval_result_metrics", "eval_result_details",
    "sae_bench_commit_hash", "sae_lens_id", "sae_lens_release_id", "sae_lens_version", "sae_cfg_dict",
    "eval_result_unstructured",
)  # fmt: skip
CONFIG_KEYS = (
    "model_name", "llm_dtype", "batch_size_prompts", "n_eval_reconstruction_batches",
    "n_eval_sparsity_variance_batches", "dataset", "context_size", "compute_kl", "compute_ce_loss", "compute_l2_norms",
    "compute_sparsity_metrics", "compute_variance_metrics", "compute_featurewise_density_statistics",
    "compute_featurewise_weight_based_metrics", "exclude_special_tokens_from_reconstruction", "verbose",
)  # fmt: skip
METRIC_KEYS = {
    "model_behavior_preservation": {"kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"},
    "model_performance_preservation": {
        "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae",
    },
    "reconstruction_quality": {"explained_variance", "explained_variance_legacy", "mse", "cossim"},
    "shrinkage": {"l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"},
    "sparsity": {"l0", "l1"},
    "token_stats": {"total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"},
    "misc_metrics": {
        "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent", "average_max_encoder_cosine_sim", "average_max_decoder_cosine_sim",
        "frac_alive",
    },
}  # fmt: skip
FEATURE_KEYS = {
    "index", "feature_density", "consistent_activation_heuristic", "encoder_bias", "encoder_norm",
    "encoder_decoder_cosine_sim", "max_decoder_cosine_sim", "max_encoder_cosine_sim",
}  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Tiny]) -> LanguageModel:
    return tiny(request.param).load()


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Tiny]) -> LanguageModel:
    return tiny("llama").load()


def random_sae(k: int | None = 4, **more: Any) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(TINY_FEATURES, TINY_WIDTH, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    biases = 0.3 * torch.randn(TINY_FEATURES, generator=generator)
    biases[5] = -1e4  # it never fires
    encoder = rows + 0.1 * torch.randn(TINY_FEATURES, TINY_WIDTH, generator=generator)
    b_dec = 0.3 * torch.randn(TINY_WIDTH, generator=generator)
    more.setdefault("norm_median", 1e6)
    return SparseAutoencoder(LAYER, k, encoder.T.contiguous(), biases, rows, b_dec, **more)


def random_contexts() -> list[np.ndarray[Any, Any]]:
    """A batch and a bit of them, of 2 to 14 tokens; some hold a special token, also as their last."""
    generator = np.random.default_rng(1)
    contexts = [generator.integers(1, 512, 2 + i % 13).astype(np.int32) for i in range(BATCH_CONTEXTS + 3)]
    contexts[4][2] = contexts[7][-1] = SPECIAL
    return contexts


# ------------------------------------------------------------------------------------------------ a plain computation


def first_part(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def run(model: LanguageModel, module: Any, ids: Tensor, replacement: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a module gives [n, d_model], and log-probabilities [n, vocabulary], with that output replaced if asked."""
    kept: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        kept.append(first_part(output)[0].clone())
        if replacement is None:
            return None
        return (replacement[None], *output[1:]) if isinstance(output, tuple) else replacement[None]

    handle = module.register_forward_hook(hook)
    logits = model.module(input_ids=ids[None]).logits[0].double()
    handle.remove()
    return kept[0], logits.log_softmax(-1)


@dataclasses.dataclass
class Plain:
    """What a plain computation gives: rows of all tokens that count, by batch, and means of the model's outputs."""

    x: list[Tensor]
    made_up: list[Tensor]
    activations: list[Tensor]  #: [n, d_sae] of a batch
    context: list[Tensor]
    outputs: dict[str, float]


def plain(model: LanguageModel, sae: SparseAutoencoder, contexts: list[np.ndarray[Any, Any]]) -> Plain:
    found = Plain([], [], [], [], {})
    sums: dict[str, list[Tensor]] = {}
    block = model.blocks[sae.layer]
    for i, own in enumerate(contexts):
        ids = torch.from_numpy(own.astype(np.int64))
        x, clean = run(model, block, ids)
        counted = (ids != SPECIAL) & (x.norm(dim=-1) <= 10 * (sae.norm_median or 0))
        counted[0] = False  # the BOS, or the sink in its place
        h = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        best = torch.zeros_like(h).scatter(1, h.topk(sae.k or 0).indices, 1.0)
        a = h.relu() * best
        x_hat = a @ sae.W_dec + sae.b_dec
        for arm, rows in (("sae", torch.where(counted[:, None], x_hat, x)), ("ablation", torch.zeros_like(x))):
            _, q = run(model, block, ids, rows)
            sums.setdefault(f"kl_{arm}", []).append((clean.exp() * (clean - q)).sum(-1)[counted])
            sums.setdefault(f"ce_{arm}", []).append(-q[:-1].gather(1, ids[1:, None])[:, 0][counted[:-1]])
        sums.setdefault("ce_clean", []).append(-clean[:-1].gather(1, ids[1:, None])[:, 0][counted[:-1]])
        if i % BATCH_CONTEXTS == 0:
            for rows in (found.x, found.made_up, found.activations, found.context):
                rows.append(torch.empty(0))
        for rows, own_rows in (
            (found.x, x[counted]), (found.made_up, x_hat[counted]), (found.activations, a[counted]),
            (found.context, torch.full((int(counted.sum()),), i)),
        ):  # fmt: skip
            rows[-1] = torch.cat([rows[-1], own_rows]) if rows[-1].numel() else own_rows
    found.outputs = {name: float(torch.cat(parts).mean()) for name, parts in sums.items()}
    return found


def plain_figures(found: Plain) -> dict[str, float]:
    """SAEBench's formulas over tokens as its source has them, all tokens held at once."""
    x, made_up = torch.cat(found.x).double(), torch.cat(found.made_up).double()
    acts = torch.cat(found.activations).double()
    batches = [(a.double(), b.double()) for a, b in zip(found.x, found.made_up, strict=True)]
    squares = torch.stack([b.pow(2).sum(-1).mean() for b, _ in batches]).mean()
    of_dimension = torch.cat([b.pow(2).mean(0) for b, _ in batches]).mean()
    errors = torch.stack([(a - b).pow(2).sum(-1).mean() for a, b in batches]).mean()
    legacy = [1 - (a - b).pow(2).sum(-1) / (a - a.mean(0)).pow(2).sum(-1) for a, b in batches]
    bias = [b.norm(dim=-1).pow(2).mean() / (a * b).sum(-1).mean() for a, b in batches]
    return {
        "l2_norm_in": float(x.norm(dim=-1).mean()),
        "l2_norm_out": float(made_up.norm(dim=-1).mean()),
        "l2_ratio": float((made_up.norm(dim=-1) / x.norm(dim=-1)).mean()),
        "relative_reconstruction_bias": float(torch.stack(bias).mean()),
        "l0": float((acts != 0).double().sum(-1).mean()),
        "l1": float(acts.abs().sum(-1).mean()),
        "explained_variance": float(1 - errors / (squares - of_dimension**2)),
        "explained_variance_legacy": float(torch.cat(legacy).mean()),
        "mse": float(torch.cat([(a - b).pow(2).sum(-1) / len(a) for a, b in batches]).mean()),
        "cossim": float(torch.cosine_similarity(x, made_up, dim=1).mean()),
    }


# ------------------------------------------------------------------------------------------------ over tokens


@pytest.mark.parametrize("bos", [False, True])
def test_every_figure_over_tokens_is_that_of_a_plain_computation(model: LanguageModel, bos: bool) -> None:
    model = dataclasses.replace(model, bos=SPECIAL if bos else None)
    contexts = random_contexts()
    if bos:
        contexts = [np.concatenate([[SPECIAL], ids]).astype(np.int32) for ids in contexts]
    block = model.blocks[LAYER]
    norms = [run(model, block, torch.from_numpy(ids.astype(np.int64)))[0].norm(dim=-1)[1:] for ids in contexts]
    # About a tenth of the tokens have a massive norm; none is near the threshold.
    largest = torch.cat(norms).sort().values[-len(torch.cat(norms)) // 10 :]
    gap = int(largest.diff().argmax())
    sae = random_sae(norm_median=float(largest[gap : gap + 2].mean()) / 10)
    expected = plain(model, sae, contexts)
    (measured,) = measure(model, [sae], contexts)
    n = sum(map(len, expected.x))
    assert measured.tokens.n_tokens == n < sum(map(len, contexts)) - len(contexts)
    assert measured.tokens.figures() == pytest.approx(plain_figures(expected), rel=1e-4, abs=1e-6)
    assert measured.left_out.keys() >= {"massive norm", "BOS" if bos else "first token"}
    assert n + sum(measured.left_out.values()) == sum(map(len, contexts))
    sae_loss, zero, clean = (expected.outputs[f"ce_{arm}"] for arm in ("sae", "ablation", "clean"))
    assert measured.performance() == pytest.approx(
        {
            "ce_loss_with_sae": sae_loss, "ce_loss_with_ablation": zero, "ce_loss_without_sae": clean,
            "ce_loss_score": (zero - sae_loss) / (zero - clean),
        },
        rel=1e-4,
    )  # fmt: skip
    divergence, ablated = expected.outputs["kl_sae"], expected.outputs["kl_ablation"]
    assert measured.behavior() == pytest.approx(
        {
            "kl_div_with_sae": divergence, "kl_div_with_ablation": ablated,
            "kl_div_score": (ablated - divergence) / ablated,
        },
        rel=1e-4,
    )  # fmt: skip
    acts, context = torch.cat(expected.activations), torch.cat(expected.context)
    fired = (acts > 0).sum(0).double()
    in_contexts = torch.stack([(acts[context == i] > 0).any(0) for i in context.unique()]).sum(0)
    np.testing.assert_allclose(measured.tokens.densities(), fired / n)
    np.testing.assert_allclose(measured.tokens.tokens_per_prompt(), fired / in_contexts)
    assert math.isnan(measured.tokens.tokens_per_prompt()[5])


def test_the_conventional_ones_are_those_of_a_regression(llama: LanguageModel) -> None:
    sae, contexts = random_sae(), random_contexts()
    expected = plain(llama, sae, contexts)
    x, made_up = torch.cat(expected.x).double(), torch.cat(expected.made_up).double()
    conventional = measure(llama, [sae], contexts)[0].tokens.conventional()
    unexplained = (x - made_up).square().sum() / (x - x.mean(0)).square().sum()
    assert conventional["explained_variance"] == pytest.approx(1 - float(unexplained), rel=1e-4)
    assert conventional["mse"] == pytest.approx(float((x - made_up).square().sum(1).mean()), rel=1e-4)


def test_several_saes_measure_as_each_alone(llama: LanguageModel) -> None:
    """Also where a pass cannot go on from the SAE's place, and the whole model is run."""
    saes = [random_sae(), dataclasses.replace(random_sae(k=9), layer=2), random_sae(point="resid_mid")]
    contexts = random_contexts()[2:7]
    together = measure(llama, saes, contexts)
    alone = [measure(llama, [sae], contexts)[0] for sae in saes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "resumes", lambda *_: False)
        whole = measure(llama, saes, contexts)
    for one, other, slow in zip(together, alone, whole, strict=True):
        assert one.tokens.figures() == other.tokens.figures()
        for figures in (lambda m: m.performance(), lambda m: m.behavior()):
            assert figures(one) == pytest.approx(figures(other), rel=1e-6)
            assert figures(one) == pytest.approx(figures(slow), rel=1e-5)


def test_a_transcoder_is_measured_where_it_writes(llama: LanguageModel) -> None:
    transcoder = random_sae(point="mlp_in", point_out="mlp_out")
    contexts = random_contexts()[2:6]
    (measured,) = measure(llama, [transcoder], contexts)
    mlp = llama.blocks[LAYER].mlp
    losses, errors = [], []
    for own in contexts:
        ids = torch.from_numpy(own.astype(np.int64))
        read: list[Tensor] = []
        handle = mlp.register_forward_hook(lambda _m, inputs, _o, read=read: read.append(inputs[0][0].clone()))
        y, _ = run(llama, mlp, ids)
        handle.remove()
        counted = ids != SPECIAL
        counted[0] = False
        made_up = transcoder.decode(transcoder.encode(read[0]), read[0])
        _, q = run(llama, mlp, ids, torch.where(counted[:, None], made_up, y))
        losses.append(-q[:-1].gather(1, ids[1:, None])[:, 0][counted[:-1]])
        errors.append((y - made_up)[counted].double().square().sum(-1))
    assert measured.performance()["ce_loss_with_sae"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    assert measured.tokens.conventional()["mse"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)


def test_an_sae_that_is_exact_costs_nothing(llama: LanguageModel) -> None:
    rows = torch.cat([torch.eye(TINY_WIDTH), -torch.eye(TINY_WIDTH)])
    zeros = torch.zeros(2 * TINY_WIDTH), torch.zeros(TINY_WIDTH)
    exact = SparseAutoencoder(LAYER, 2 * TINY_WIDTH, rows.T.contiguous(), zeros[0], rows, zeros[1], norm_median=1e6)
    (measured,) = measure(llama, [exact], random_contexts())
    figures = measured.tokens.figures()
    assert figures["mse"] == pytest.approx(0, abs=1e-9)
    for name in ("explained_variance", "explained_variance_legacy", "cossim", "l2_ratio"):
        assert figures[name] == pytest.approx(1, abs=1e-6)
    assert figures["relative_reconstruction_bias"] == pytest.approx(1, abs=1e-6)
    assert measured.behavior()["kl_div_with_sae"] == pytest.approx(0, abs=1e-5)
    assert measured.performance()["ce_loss_score"] == pytest.approx(1, abs=1e-4)


# ------------------------------------------------------------------------------------------------ over features


def test_cosines_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = random_sae()
    unit = torch.nn.functional.normalize(sae.encoder_rows.double(), dim=1)
    cosines = unit @ unit.T - 2 * torch.eye(len(unit))
    for at_once in (7, 1_024):
        monkeypatch.setattr(weights, "ROWS_AT_ONCE", at_once)
        np.testing.assert_allclose(largest_cosines(sae.encoder_rows), cosines.max(1).values, rtol=1e-5)
    figures = weight_figures(sae)
    np.testing.assert_allclose(figures["max_encoder_cosine_sim"], cosines.max(1).values, rtol=1e-5)
    np.testing.assert_allclose(figures["encoder_norm"], sae.W_enc.norm(dim=0), rtol=1e-6)
    between = (unit * torch.nn.functional.normalize(sae.W_dec.double(), dim=1)).sum(1)
    np.testing.assert_allclose(figures["encoder_decoder_cosine_sim"], between, rtol=1e-5)


def test_shares_of_frequent_features() -> None:
    densities = np.array([0.0, 0.005, 0.02, 0.5, 0.01])
    ones = {"max_encoder_cosine_sim": np.full(5, 0.25), "max_decoder_cosine_sim": np.full(5, 0.75)}
    assert misc_figures(densities, ones) == pytest.approx({
        "average_max_encoder_cosine_sim": 0.25, "average_max_decoder_cosine_sim": 0.75, "frac_alive": 0.8,
        "freq_over_1_percent": 0.4, "normalized_freq_over_1_percent": 0.52 / 0.535,
        "freq_over_10_percent": 0.2, "normalized_freq_over_10_percent": 0.5 / 0.535,
    })  # fmt: skip
    nothing = misc_figures(np.zeros(5), ones)
    assert nothing["normalized_freq_over_1_percent"] == nothing["frac_alive"] == 0


# ------------------------------------------------------------------------------------------------ files


def without_time(path: Path) -> dict[str, Any]:
    results = json.loads(path.read_text(encoding="utf-8"))
    del results["datetime_epoch_millis"]
    return results


def test_files_are_whole_and_the_same_every_time(tiny_warehouse: Path, tmp_path: Path) -> None:
    done = export_saebench(tiny_warehouse, tmp_path / "one", contexts=20)
    again = export_saebench(tiny_warehouse, tmp_path / "two", contexts=20)
    assert [path.name for path in done.files] == [
        f"elw-model_blocks.{layer}.hook_resid_post_eval_results.json" for layer in TINY_LAYERS
    ]
    for path, other in zip(done.files, again.files, strict=True):
        assert without_time(path) == without_time(other)
        results = json.loads(path.read_text(encoding="utf-8"))
        assert tuple(results) == KEYS
        assert tuple(results["eval_config"]) == CONFIG_KEYS
        assert {group: set(values) for group, values in results["eval_result_metrics"].items()} == METRIC_KEYS
        assert [entry["index"] for entry in results["eval_result_details"]] == list(range(TINY_FEATURES))
        assert all(set(entry) == FEATURE_KEYS for entry in results["eval_result_details"])
        assert results["eval_config"]["n_eval_reconstruction_batches"] == 2
        tokens = results["eval_result_unstructured"]["tokens"]
        assert tokens["counted"] + sum(tokens["left_out"].values()) == tokens["read"]
    assert {path.name for path in done.files} | {MANIFEST} == exported_files(tmp_path / "one")
    one = export_saebench(tiny_warehouse, tmp_path / "two", contexts=4, layers=TINY_LAYERS[:1])
    assert exported_files(tmp_path / "two") == exported_files(tmp_path / "one"), "the other SAE's results stay"
    assert one.files[0].read_bytes() != done.files[0].read_bytes()
    assert again.files[1].read_bytes() == (tmp_path / "two" / again.files[1].name).read_bytes()


def test_what_cannot_be_is_told_before_the_model_is_loaded(
    tiny_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(CurrentRun, "load_model", load)
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex', which no export wrote"):
        export_saebench(tiny_warehouse, tmp_path, contexts=4)
    with pytest.raises(UsageError, match=r"cannot be written \(Not a directory\): name another folder"):
        export_saebench(tiny_warehouse, tmp_path / "thesis.tex" / "below", contexts=4)
    with pytest.raises(UsageError, match="no layer 7"):
        export_saebench(tiny_warehouse, tmp_path / "out", layers=[7])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_densities_are_those_of_the_run(tiny_warehouse: Path, tmp_path: Path) -> None:
    """Over all contexts: the run's own activations, and those of contexts' last tokens, which a run leaves out."""
    done = export_saebench(tiny_warehouse, tmp_path, contexts=10**6)
    with Warehouse(tiny_warehouse) as warehouse:
        for layer, path in zip(TINY_LAYERS, done.files, strict=True):
            rows = warehouse.sql(f"SELECT feature, count(*) FROM activations WHERE layer = {layer} GROUP BY ALL")
            stored = np.zeros(TINY_FEATURES)
            for feature, n in rows.fetchall():
                stored[feature] = n
            results = json.loads(path.read_text(encoding="utf-8"))
            n_counted = results["eval_result_unstructured"]["tokens"]["counted"]
            densities = [entry["feature_density"] for entry in results["eval_result_details"]]
            more = np.array(densities) * n_counted - stored
            n_contexts = results["eval_result_unstructured"]["sample"]["contexts"]
            assert more.min() > -1e-4
            assert 0 < more.sum() <= 4 * n_contexts + 1e-4  # k = 4 at each last token


def test_what_is_no_number_is_minus_one(llama: LanguageModel) -> None:
    """Of a feature that never fires, tokens per prompt; where every norm is massive, all that is taken over tokens."""
    sae = random_sae(norm_median=1e-9)
    contexts = random_contexts()[:3]
    (measured,) = measure(llama, [sae], contexts)
    facts = dataclasses.make_dataclass("Facts", ["run_id", "model", "model_sha256", "dtype", "context_length"])
    run_facts: Any = facts(1, "owner/a model", "", "float32", 14)
    sample = Sample(contexts, 3, 0, False, 0)
    (of_tokens,) = measure(llama, [random_sae()], contexts)
    silent = core_results(random_sae(), of_tokens, sample, run_facts)["eval_result_details"][5]
    assert (silent["feature_density"], silent["consistent_activation_heuristic"]) == (0, -1)
    results = core_results(sae, measured, sample, run_facts)
    metrics = json.loads(json.dumps(results, allow_nan=False))["eval_result_metrics"]
    for group in ("model_behavior_preservation", "reconstruction_quality", "shrinkage", "sparsity"):
        assert set(metrics[group].values()) == {-1}
    assert metrics["misc_metrics"]["frac_alive"] == 0
    assert file_name(*names(sae, run_facts)) == "elw-a model_blocks.1.hook_resid_post_eval_results.json"
    published = dataclasses.replace(sae, metadata={"sae_lens_release": "a/b", "sae_lens_id": "layer_1/width"})
    assert file_name(*names(published, run_facts)) == "a_b_layer_1_width_eval_results.json"
    hostile = dataclasses.replace(sae, metadata={"sae_lens_release": "../\0", "sae_lens_id": "x\n"})
    assert names(hostile, run_facts) == names(sae, run_facts)


def test_contexts_that_were_seen_in_training_are_left_out(tiny_warehouse: Path) -> None:
    current = CurrentRun(tiny_warehouse)
    with Warehouse(tiny_warehouse) as warehouse:
        rows = warehouse.sql(
            "SELECT d.sha256, list(c.context_id) FROM contexts AS c JOIN documents AS d USING (run_id, document_id) "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    hashes = [sha256 for sha256, _ in rows]

    def sampled(seen: list[str]) -> Sample:
        return take_sample(current, [random_sae(metadata={"documents": {"train": seen}})], 10**6)

    everything = sampled([])
    assert (everything.n_seen, len(everything.contexts)) == (0, everything.n_of_run)
    some = sampled([hashes[0][:16], hashes[3]])
    assert some.n_seen == len(rows[0][1]) + len(rows[3][1])
    assert len(some.contexts) == some.n_of_run - some.n_seen
    assert not some.seen_are_in
    every = sampled(hashes)
    assert every.seen_are_in
    assert len(every.contexts) == every.n_of_run == every.n_seen


def test_on_the_command_line(tiny_warehouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "--format", "saebench", str(tmp_path / "new" / "out"), "--db", str(tiny_warehouse)]
    assert main([*words, "--contexts", "3"]) == 0
    printed = capsys.readouterr()
    paths = [Path(line) for line in printed.out.splitlines()]
    assert [path.parent for path in paths] == [tmp_path / "new" / "out"] * len(TINY_LAYERS)
    assert all(path.is_file() for path in paths)
    assert "Measured on 3 of the run's" in printed.err
    assert "is not known" in printed.err  # the tiny SAEs do not say what they were trained on
    for more, sentence in ((["--features", "top:3"], "leave out --features"), (["--contexts", "0"], "at least 1")):
        assert main([*words, *more]) == 2
        assert sentence in capsys.readouterr().err


def test_empty_batches_are_no_batches() -> None:
    figures = TokenFigures(3, 4)
    sae = SparseAutoencoder(0, 1, torch.eye(3, 4), torch.zeros(4), torch.eye(4, 3), torch.zeros(3))
    figures.add(torch.zeros(0, 3), torch.zeros(0, 3), sae.encode(torch.zeros(0, 3)), torch.zeros(0, dtype=torch.int64))
    assert all(math.isnan(value) for value in figures.figures().values())
    assert math.isnan(Measurement(figures).performance()["ce_loss_score"])


@pytest.mark.skipif(not OTHER_PYTHON, reason="ELW_TEST_SAEBENCH names no Python that has sae-bench")
def test_saebench_reads_the_files_and_measures_the_same(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "saebench_parity.py"
    here = os.environ | {"PYTHONPATH": str(Path(energy_lens.__file__).parent.parent), "HF_HUB_OFFLINE": "1"}
    there = {name: value for name, value in here.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, str(script), "write", str(tmp_path)], env=here, check=True)
    subprocess.run([str(OTHER_PYTHON), str(script), "check", str(tmp_path)], env=there, check=True)
