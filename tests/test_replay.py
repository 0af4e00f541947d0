"""The draft's protocol: its selection and figures against plain loops, its noise against an independent simulation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from energy_lens.analysis import replay as module
from energy_lens.analysis.replay import NOISE, TEXTS, Arm, TextAtLayer, alignment_figures, replay, strongest
from energy_lens.cli.main import main
from energy_lens.ingest.model.loading import DEFAULT_LAYERS, DEFAULT_MODEL, load_model
from energy_lens.ingest.sae.choosing import sae_folders, shipped_folder
from energy_lens.ingest.sae.formats import load_sae

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def arms(tiny: Callable[..., Any]) -> list[Arm]:
    saes = [load_sae(folder) for folder in sae_folders(tiny("llama").saes)]
    return replay(tiny("llama").load(), saes, seed=3, repetitions=4)


def top_twenty(columns: list[Floats], g: Floats) -> list[float]:
    """The 20 largest |r| above 0.1, by scipy, of the columns that vary."""
    r = [abs(float(stats.pearsonr(a, g).statistic)) for a in columns if len(set(a)) > 1]
    return [value for value in sorted(r, reverse=True)[:20] if value > 0.1]


def test_the_texts_are_the_protocols() -> None:
    """Their words are facts: lengths and backslashes are as in the draft."""
    assert [len(text) for text in TEXTS] == [103, 75, 97, 89, 93]
    assert r"\d+\.\d+" in TEXTS[0]
    assert r"\{.*\}" in TEXTS[4]


def test_at_most_twenty_above_a_tenth() -> None:
    """The 20 largest are kept, those of 0.1 and less are not; of equal ones no more than 20."""
    r = np.array([0.05, 0.1, 0.100001, 0.9, 0.5])
    assert strongest(r).tolist() == [False, False, True, True, True]
    many = np.random.default_rng(0).random(300)
    assert set(many[strongest(many)]) == set(np.sort(many)[-20:])
    assert strongest(np.full(50, 0.3)).sum() == 20
    assert not strongest(np.full(50, 0.1)).any()


def test_figures_equal_loops_over_features() -> None:
    """Count, mean, percentile and maximum of alignments, and the t test's survivors, by scipy; with one g or many."""
    generator = np.random.default_rng(1)
    cells = []
    for n in (9, 15, 21):
        a = np.maximum(generator.standard_normal((n, 70)) + 1, 0)  # dense enough to have no ties
        a[:, :5] = 0  # features that never fire are not tested
        g = generator.standard_normal((n, 1)) + np.zeros((1, 70 if n == 15 else 1))
        g[:, min(60, g.shape[1] - 1)] += 9 * a[:, 60]
        cells.append(TextAtLayer(a, g))
    found = alignment_figures(cells, generator)
    alignments, p, chosen = [], [], []
    for cell in cells:
        own = []
        for j in np.flatnonzero(np.ptp(cell.a, axis=0) > 0):
            r = stats.pearsonr(cell.a[:, j], cell.g[:, min(j, cell.g.shape[1] - 1)])
            own.append(abs(float(r.statistic)))
            p.append(float(r.pvalue))
        limit = max(sorted(own)[-20], 0.1)
        chosen += [r >= limit for r in own]
        alignments += [r for r in own if r >= limit]
    assert found.tested == len(p)
    assert found.alignments == len(alignments)
    assert (found.mean_r, found.max_r) == pytest.approx((np.mean(alignments), max(alignments)), rel=1e-10)
    assert found.p95_r == pytest.approx(np.quantile(alignments, 0.95), rel=1e-10)
    q = stats.false_discovery_control(p)
    assert found.survive_t == (np.array(chosen) & (q < 0.05)).sum() > 0


def test_survival_is_above_the_largest_of_permuted_tokens() -> None:
    """On noise 5 % of texts have a survivor; a perfect alignment survives, unless it hangs on one token."""
    generator = np.random.default_rng(2)
    survivors = [
        alignment_figures(
            [TextAtLayer(generator.standard_normal((12, 200)), generator.standard_normal((12, 1)))], generator
        )
        for _ in range(200)
    ]
    assert 0.01 < np.mean([found.survive_permutation > 0 for found in survivors]) < 0.1
    for each in (False, True):  # one gradient for all features, or one each
        a = np.maximum(generator.standard_normal((20, 100)) - 0.5, 0)
        g = a[:, :1] if not each else np.concatenate([a[:, :1], generator.standard_normal((20, 99))], 1)
        assert alignment_figures([TextAtLayer(a, g)], generator).survive_permutation >= 1
    a = np.zeros((20, 100))
    a[generator.integers(20, size=100), np.arange(100)] = 1
    found = alignment_figures([TextAtLayer(a, a[:, :1])], generator)
    assert found.max_r == pytest.approx(1)
    assert found.survive_t > 0
    assert found.survive_permutation == 0


def test_the_models_arms_equal_the_readings(tiny: Callable[..., Any], arms: list[Arm]) -> None:
    """Alignments of the two nll arms, from Hugging Face's own hidden states, losses and autograd."""
    from safetensors.torch import load_file

    model = tiny("llama").load()
    discrete, decoder = [], []
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False).input_ids])
        embeddings = model.module.get_input_embeddings()(ids).requires_grad_(True)
        output = model.module(inputs_embeds=embeddings, output_hidden_states=True, use_cache=False)
        losses = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:], reduction="none")
        slope = -np.gradient(losses.detach().double().numpy())
        for layer in (1, 2):
            weights = load_file(tiny("llama").saes / f"layer_{layer}" / "sae_weights.safetensors")
            x = output.hidden_states[layer + 1]
            (gradient,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
            h = (x[0].detach() - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
            kept = h >= h.topk(4).values[:, -1:]
            a = torch.where(kept & (h > 0), h, 0).double().numpy()[1:-1]  # neither the first token nor the last
            g = -(gradient[0].double() @ weights["W_dec"].double().T).numpy()[1:-1]
            discrete += top_twenty(list(a.T), slope[1:])
            own = [r for j in range(64) for r in top_twenty([a[:, j]], g[:, j])]
            decoder += sorted(own, reverse=True)[:20]
    for name, expected in (("discrete", discrete), ("decoder gradient of nll", decoder)):
        (found,) = [arm.figures for arm in arms if name in arm.name]
        assert found.alignments == len(expected)
        assert found.mean_r == pytest.approx(np.mean(expected), rel=1e-4)
        assert found.p95_r == pytest.approx(np.quantile(expected, 0.95), rel=1e-4)
        assert found.max_r == pytest.approx(max(expected), rel=1e-4)


def simulated(n_tokens: list[int], repetitions: int) -> Floats:
    """Alignments' count, mean, 95th percentile and maximum of dense noise [repetition, figure], by numpy's corrcoef."""
    generator = np.random.default_rng(99)
    rows = []
    for _ in range(repetitions):
        r: list[float] = []
        for n in n_tokens:
            noise = generator.standard_normal((2049, n))
            correlations = np.abs(np.corrcoef(noise)[0, 1:])
            r += [value for value in sorted(correlations)[-20:] if value > 0.1]
        rows.append((len(r), np.mean(r), np.percentile(r, 95), max(r)))
    return np.array(rows)


def test_noise_alone_is_what_an_independent_simulation_gives(tiny: Callable[..., Any], arms: list[Arm]) -> None:
    """The last arm's figures lie within what another generator and another formula give."""
    tokenizer = tiny("llama").load().tokenizer
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) - 2 for text in TEXTS for _ in (1, 2)]
    expected = simulated(lengths, 4)
    (noise,) = [arm for arm in arms if arm.name == NOISE]
    assert noise.figures.tested == 2048 * len(lengths)
    assert noise.figures.alignments == 20 * len(lengths) == expected[0, 0]
    found = (noise.figures.mean_r, noise.figures.p95_r, noise.figures.max_r)
    for value, others in zip(found, expected[:, 1:].T, strict=True):
        assert abs(value - others.mean()) < 4 * others.std(ddof=1)


def test_equal_seeds_give_equal_figures(tiny: Callable[..., Any], arms: list[Arm], monkeypatch: Any) -> None:
    """Another seed changes the noise and not the model; one repetition has no spread; an SAE without a median works."""
    saes = [load_sae(folder) for folder in sae_folders(tiny("llama").saes)]
    assert all(sae.norm_median is None for sae in saes)
    monkeypatch.setattr(module, "DRAFT_FEATURES", 32)
    again, other = (replay(tiny("llama").load(), saes, seed=seed, repetitions=1) for seed in (3, 4))
    assert again == replay(tiny("llama").load(), saes, seed=3, repetitions=1)
    assert again[4].figures != other[4].figures
    for one, two, three in zip(arms[1:4], again[1:4], other[1:4], strict=True):
        assert one == two
        assert (two.figures.alignments, two.figures.max_r) == (three.figures.alignments, three.figures.max_r)
        assert two.spread is None


def test_the_command_prints_every_arm(tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Rows on stdout, the published ones first and without tests; what they mean in two sentences on stderr."""
    model = tiny("llama")
    words = ["efas", "replay-draft", "--model", str(model.folder), "--sae", str(model.saes), "--repetitions", "2"]
    assert main([*words, "--layers", "1", "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 6
    assert [rows[0][name] for name in ("alignments", "mean_r", "p95_r", "max_r")] == [496, 0.3775, 0.7388, 0.8559]
    assert rows[0]["survive_t"] is rows[0]["repetitions"] is rows[1]["max_r_sd"] is None
    assert rows[-1]["max_r_sd"] > 0
    assert rows[-1]["alignments"] == 100
    assert err.count("\n") == 2
    assert f"a maximum of {rows[-1]['max_r']:.2f}" in err
    assert main([*words, "--layers", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.real
def test_real_replay() -> None:
    """On SmolLM2 noise alone looks like what was published, and of the model's alignments hardly one survives."""
    saes = [load_sae(shipped_folder(DEFAULT_MODEL, layer)) for layer in DEFAULT_LAYERS]
    published, discrete, decoder, control, matched, noise = replay(load_model(DEFAULT_MODEL), saes, repetitions=3)
    assert noise.figures.alignments == 500 >= published.figures.alignments
    assert noise.figures.p95_r == pytest.approx(0.7, abs=0.02)
    assert noise.figures.max_r == pytest.approx(published.figures.max_r, abs=0.1)
    for arm in (discrete, decoder):
        assert arm.figures.survive_permutation < 0.05 * arm.figures.alignments
    assert matched.figures.survive_permutation < 10
    assert control.figures.mean_r > 0.85
    assert control.figures.survive_permutation > 50
