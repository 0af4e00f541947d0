"""The permutation test: its look-ups against brute force over stored rows, its p against scipy, its level and power."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from energy_lens.analysis import permutation_inputs
from energy_lens.analysis.permutation import Block, PairedContexts, look_up, pair_sums, paired_tokens, permutation_test
from energy_lens.analysis.permutation_check import check_run, permutation_sentences
from energy_lens.analysis.permutation_inputs import Inputs, PermutationInputs, PermutationOptions
from energy_lens.cli.main import main
from energy_lens.ingest.model.loading import DEFAULT_MODEL
from energy_lens.ingest.sae.choosing import shipped_folder
from energy_lens.warehouse.database import Warehouse

Floats = NDArray[np.float64]

ENERGIES = ("nll", "logit_lens", "attention", "hopfield")
LENGTH = 32  #: tokens in a context of the tiny warehouse


# ------------------------------------------------------------------------------------------------ a reference


@dataclass
class Stored:
    """Activations and g̃ of one layer and energy, densified from the tables and the plan by loops."""

    documents: dict[str, dict[int, list[int]]]  #: category: document: its contexts in order
    a: dict[int, Floats]  #: context: [position, feature], 0 where not counted
    g: dict[int, Floats]  #: context: g̃ [position, feature], 0 where not counted

    def statistic(self, category: str, pairs: dict[int, int]) -> Floats:
        """ΣS_c and ΣS_c² [2, feature] when each document's activations meet the gradients of pairs[document]."""
        total = np.zeros((2, next(iter(self.a.values())).shape[1]))
        for one, other in pairs.items():
            own = self.documents[category]
            for i in range(min(len(own[one]), len(own[other]))):
                a, g = self.a[own[one][i]], self.g[own[other][i]]
                both = self.g[own[one][i]].any(1) & g.any(1)  # positions that count in either
                s = (a[both] * g[both]).sum(0) - a[both].sum(0) * g[both].sum(0) / max(both.sum(), 1)
                total += s, s**2
        return total


def read(db: Path, layer: int, energy: str, decoder: Floats) -> Stored:
    with Warehouse(db) as warehouse:
        rows = warehouse.sql(
            """
            SELECT g.category, list((p.context_id, c.document_id) ORDER BY p.lane)
            FROM plan AS p JOIN plan_groups AS g USING (run_id, group_id) JOIN contexts AS c USING (run_id, context_id)
            WHERE g.committed_at IS NOT NULL GROUP BY g.group_id, p.row, g.category
            """
        ).fetchall()
        place = {"layer": layer, "energy": energy}
        vectors = warehouse.sql(
            "SELECT token_id, vector FROM gradients WHERE layer = $layer AND energy = $energy", **place
        ).fetchall()
        active = warehouse.sql(
            "SELECT token_id, feature, activation FROM activations WHERE layer = $layer", layer=layer
        )
        activations = active.fetchall()
    raw: dict[int, Floats] = {}
    for token, vector in vectors:
        g = raw.setdefault(token // LENGTH, np.full((LENGTH, len(decoder)), np.nan))
        g[token % LENGTH] = -np.asarray(vector, dtype=np.float64) @ decoder.T
    stored = Stored({}, {}, {})
    for category, contexts in rows:
        centred = {context: raw[context] - np.nanmean(raw[context], 0) for context, _ in contexts}
        for context, document in contexts:
            stored.documents.setdefault(category, {}).setdefault(document, []).append(context)
            stored.a[context], stored.g[context] = np.zeros((2, LENGTH, len(decoder)))
            for t in range(LENGTH):
                mates = [m for m in centred if m != context and not np.isnan(centred[m][t, 0])]
                if len(mates) >= 3 and not np.isnan(centred[context][t, 0]):
                    stored.g[context][t] = centred[context][t] - np.mean([centred[m][t] for m in mates], 0)
            counted = stored.g[context].any(1)
            stored.g[context][counted] -= stored.g[context][counted].mean(0) if counted.any() else 0
    for token, feature, activation in activations:
        context, t = divmod(token, LENGTH)
        if stored.g[context][t].any():
            stored.a[context][t, feature] = activation
    for own in stored.documents.values():
        for contexts in own.values():
            contexts.sort()
    return stored


def inputs_of(db: Path, **options: Any) -> list[Inputs]:
    return list(PermutationInputs(db, PermutationOptions(**options)).inputs())


def block_of(inputs: Inputs, category: str) -> tuple[Block, list[int]]:
    """A category's block, and the documents' ids in its order."""
    contexts = inputs.contexts
    return Block.of(contexts, category), sorted(set(contexts.documents[contexts.categories == category].tolist()))


# ------------------------------------------------------------------------------------------------ on a warehouse


@pytest.mark.parametrize("energy", ENERGIES)
def test_look_ups_equal_brute_force(energy: str, tiny_warehouse: Path, tiny: Callable[..., Any]) -> None:
    """ΣS_c and ΣS_c² of explicit permutations, by look-up and by going through paired contexts, feature for feature."""
    from safetensors.torch import load_file

    generator = np.random.default_rng(0)
    for inputs in inputs_of(tiny_warehouse, energies=(energy,)):
        weights = load_file(tiny("llama").saes / f"layer_{inputs.layer}" / "sae_weights.safetensors")
        features = inputs.tested["feature"]
        stored = read(tiny_warehouse, inputs.layer, energy, weights["W_dec"].double().numpy())
        for category in ("code", "natural"):
            block, ids = block_of(inputs, category)
            both = pair_sums(inputs.contexts, block, inputs.centred, inputs.decoder)
            n_tokens = paired_tokens(block, inputs.centred)
            for _ in range(4):
                order = generator.permutation(len(ids))
                pairs = {ids[i]: ids[j] for i, j in enumerate(order)}
                pairing = torch.from_numpy(order)[None]
                for sums, expected in zip(both, stored.statistic(category, pairs), strict=True):
                    found = look_up(sums, pairing)[0].numpy()
                    size = 1e-4 * np.abs(expected).max()
                    np.testing.assert_allclose(found, expected[features], rtol=1e-4, atol=size)
                n = 0
                for one, other in pairs.items():
                    own = stored.documents[category]
                    for context, mate in zip(own[one], own[other], strict=False):
                        n += (stored.g[context].any(1) & stored.g[mate].any(1)).sum()
                assert look_up(n_tokens, pairing) == n


@pytest.mark.parametrize("category", ["all", "code"])
def test_the_observed_statistic_is_that_of_the_within_context_test(category: str, tiny_warehouse: Path) -> None:
    """The identity pairs every token with itself: `statistic` is sum_s, over just the features that efas tests."""
    outcomes = check_run(tiny_warehouse, PermutationOptions(category=category, permutations=19))
    with Warehouse(tiny_warehouse) as warehouse:
        for outcome in outcomes:
            expected = warehouse.sql(
                """
                SELECT feature, sum_s, n_counted, n_counted_contexts, q_value FROM feature_statistics
                WHERE gradient = 'decoder' AND half = 'AB' AND q_value IS NOT NULL
                    AND layer = $layer AND energy = $energy AND category = $category ORDER BY feature
                """,
                layer=outcome.layer, energy=outcome.energy, category=category,
            ).numpy()  # fmt: skip
            np.testing.assert_array_equal(outcome.features, expected["feature"])
            np.testing.assert_array_equal(outcome.n_active, expected["n_counted"])
            np.testing.assert_array_equal(outcome.n_contexts, expected["n_counted_contexts"])
            np.testing.assert_array_equal(outcome.q_value, expected["q_value"])
            size = 1e-5 * np.abs(expected["sum_s"]).max()
            np.testing.assert_allclose(outcome.permuted.statistic, expected["sum_s"], rtol=1e-4, atol=size)
            assert len(outcome.features) >= 20


def test_gradients_taken_anew_equal_stored_ones(tiny_warehouse: Path, tmp_path: Path) -> None:
    """Without stored vectors the model is run again, on the tokens in the warehouse: the same ∇̃, the same p."""
    db = tmp_path / "without.duckdb"
    shutil.copy(tiny_warehouse, db)
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("UPDATE gradients SET vector = NULL")
        warehouse.sql("UPDATE runs SET store_gradients = false")
        warehouse.sql("UPDATE documents SET source = '/gone'")
    own = ("nll", "logit_lens", "attention", "hopfield")  # the tiny model's tuned lens is not at hand
    pairs = zip(inputs_of(tiny_warehouse, energies=own), inputs_of(db, energies=own, contexts=10_000), strict=True)
    for one, two in pairs:
        assert (one.layer, one.energy) == (two.layer, two.energy)
        size = float(one.centred.abs().max())
        torch.testing.assert_close(one.centred, two.centred, rtol=1e-4, atol=1e-5 * size)
    options = PermutationOptions(energies=("nll",), permutations=199, contexts=10_000)
    for stored, anew in zip(check_run(tiny_warehouse, options), check_run(db, options), strict=True):
        np.testing.assert_allclose(stored.permuted.p, anew.permuted.p, atol=0.011)


def test_a_sample_takes_whole_rows_in_turn_from_each_category(
    tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many contexts as asked for, up to a row; equal seeds take equal ones; the user is told."""
    runs = [PermutationInputs(tiny_warehouse, PermutationOptions(contexts=60, seed=seed)) for seed in (0, 0, 1)]
    for run in runs:
        used = run.used
        assert 60 <= len(used.ids) < 76
        assert abs((used.categories == "code").sum() - 30) < 10
        for places in used.rows:
            assert len(places) > 3
            assert len(set(used.documents[places])) == len(places)
        for document in set(used.documents):
            own = used.documents == document
            assert used.ranks[own][np.argsort(used.ids[own])].tolist() == list(range(own.sum()))
    assert runs[0].used.ids.tolist() == runs[1].used.ids.tolist() != runs[2].used.ids.tolist()
    assert "A sample of" in capsys.readouterr().err


def test_what_does_not_fit_into_memory_is_sampled(
    tiny_warehouse: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(permutation_inputs, "MAX_GRADIENT_NUMBERS", 40 * 32 * 32)
    assert 40 <= len(PermutationInputs(tiny_warehouse, PermutationOptions()).used.ids) < 56
    assert "for want of memory" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ on made-up documents


def autocorrelated(generator: np.random.Generator, shape: tuple[int, ...], rho: float = 0.6) -> Floats:
    """Standard normal noise of autocorrelation `rho` along the second axis."""
    noise = generator.standard_normal(shape)
    for t in range(1, shape[1]):
        noise[:, t] = rho * noise[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return noise


def documents(
    lengths: list[int], n_features: int, seed: int, effect: Floats | float = 0.0, n_positions: int = 24
) -> tuple[PairedContexts, torch.Tensor]:
    """Contexts of documents, `lengths` of each, half of them of another category; a and g̃ autocorrelated in both.

    effect: added to g̃ per unit of a, by feature. The decoder that goes with it is minus the unit matrix.
    """
    generator = np.random.default_rng(seed)
    n_contexts = sum(lengths)
    a = np.maximum(autocorrelated(generator, (n_contexts, n_positions, n_features)) - 1, 0)
    g = autocorrelated(generator, a.shape) + effect * a
    g -= g.mean(1, keepdims=True)
    document = np.repeat(np.arange(len(lengths)), lengths)
    context, position, feature = np.nonzero(a)
    contexts = PairedContexts(
        np.where(document % 2, "odd", "even").astype(object), document,
        np.concatenate([np.arange(n) for n in lengths]), context, position, feature, a[context, position, feature],
    )  # fmt: skip
    return contexts, torch.from_numpy(g)


def test_p_is_scipys() -> None:
    """With all 24 pairings of four documents p is near scipy's exact one; ties with the observed pairing count."""
    contexts, g = documents([2, 3, 1, 2], 12, seed=1, effect=0.5)
    contexts = replace(contexts, categories=np.full(8, "one", dtype=object))
    decoder = -torch.eye(12, dtype=torch.float64)
    found = permutation_test(contexts, g, decoder, 20_000, seed=0)
    block = Block.of(contexts, "one")
    s, s2 = pair_sums(contexts, block, g, decoder)
    n_tokens = paired_tokens(block, g)

    def exact(feature: int, studentised: bool) -> float:
        def statistic(order: NDArray[np.int64]) -> float:
            pairing = torch.from_numpy(np.asarray(order))[None]
            divisor = look_up(s2, pairing)[0, feature] if studentised else look_up(n_tokens, pairing)
            return abs(float(look_up(s, pairing)[0, feature])) / float(divisor) ** 0.5

        outcome = stats.permutation_test(
            (np.arange(4),), statistic, permutation_type="pairings", alternative="greater", n_resamples=np.inf
        )
        return float(outcome.pvalue)

    for feature in range(12):
        assert found.p[feature] == pytest.approx(exact(feature, True), abs=0.02)
        assert found.p_sum[feature] == pytest.approx(exact(feature, False), abs=0.02)
    assert permutation_test(contexts, g, decoder, 99, seed=0).p.min() >= 1 / 100


def test_features_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many features are taken at once; and a seed gives the same permutations again."""
    from energy_lens.analysis import permutation

    contexts, g = documents([3, 1, 4, 2, 5, 2, 3, 3], 40, seed=2)
    decoder = -torch.eye(40, dtype=torch.float64)
    whole = permutation_test(contexts, g, decoder, 99, seed=3)
    monkeypatch.setattr(permutation, "CHUNK_NUMBERS", 7 * 4 * 24)
    pieces = permutation_test(contexts, g, decoder, 99, seed=3)
    np.testing.assert_allclose(pieces.statistic, whole.statistic)
    np.testing.assert_array_equal(pieces.p, whole.p)
    assert pieces.random_rejected == pytest.approx(whole.random_rejected)
    assert (permutation_test(contexts, g, decoder, 99, seed=4).p != whole.p).any()


LENGTHS = {
    "equal": [4] * 20,
    "unequal": [8, 8, 9, 9, 10, 10, 12, 12, 13, 13, 14, 22, 7, 11, 11, 9, 10, 17, 16, 18],
    "very unequal": [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 6, 6, 9, 9, 14, 14, 20, 20],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_it_rejects_five_percent_when_nothing_is_true(lengths: list[int]) -> None:
    """Whatever the documents' lengths. Bare sums of the same pairings reject far more where lengths differ."""
    rejected, rejected_sum, bare = [], [], []
    for seed in range(8):
        contexts, g = documents(lengths, 100, seed)
        decoder = -torch.eye(100, dtype=torch.float64)
        found = permutation_test(contexts, g, decoder, 199, seed=seed)
        rejected.append((found.p <= 0.05).mean())
        rejected_sum.append((found.p_sum <= 0.05).mean())
        # √(1 − 1/D), for D documents in a category: what rows and columns of M have in common moves the mean.
        assert np.median(found.permuted_deviation) == pytest.approx(np.sqrt(0.9), abs=0.05)
        generator = np.random.default_rng(seed)
        block = Block.of(contexts, "even")
        sums = look_up(pair_sums(contexts, block, g, decoder)[0], block.pairings(199, generator)).abs()
        bare.append(float(((sums[1:] >= sums[0]).sum(0) + 1 <= 10).double().mean()))
        assert found.random_rejected == pytest.approx(0.05, abs=0.03)
    assert 0.03 < np.mean(rejected) < 0.07
    assert 0.03 < np.mean(rejected_sum) < 0.07
    if max(lengths) == 20:
        assert np.mean(bare) > 0.1


def test_large_gradients_of_either_sign_are_no_association() -> None:
    """Where a feature fires at large gradients whose sign is random, z's permutation keeps its level; the sum's not."""
    contexts, g = documents([10] * 30, 200, seed=7)
    generator = np.random.default_rng(8)
    active = (contexts.context, contexts.position, contexts.feature)
    g[active] += torch.from_numpy(2 * contexts.activation * generator.choice([-1.0, 1.0], len(contexts.activation)))
    found = permutation_test(contexts, g, -torch.eye(200, dtype=torch.float64), 499, seed=0)
    assert 0.02 < (found.p <= 0.05).mean() < 0.09
    assert (found.p_sum <= 0.05).mean() > 0.2


def test_it_finds_planted_effects_and_agrees_with_z() -> None:
    """Effects of either sign are found with their sign; over features z and the permutation rank alike."""
    effect = np.concatenate([np.zeros(60), np.full(20, 0.6), np.full(20, -0.6), np.linspace(-0.3, 0.3, 40)])
    contexts, g = documents(LENGTHS["unequal"], 140, seed=5, effect=effect)
    found = permutation_test(contexts, g, -torch.eye(140, dtype=torch.float64), 999, seed=0)
    assert (found.p[60:100] <= 0.01).mean() > 0.95
    assert (np.sign(found.z[60:100]) == np.sign(effect[60:100])).all()
    assert (found.p[:60] <= 0.05).mean() < 0.12
    s = np.zeros((len(contexts.documents), 140))
    values = contexts.activation * g.numpy()[contexts.context, contexts.position, contexts.feature]
    np.add.at(s, (contexts.context, contexts.feature), values)
    np.testing.assert_allclose(found.statistic, s.sum(0))
    assert stats.spearmanr(s.sum(0) / np.sqrt((s**2).sum(0)), found.z).statistic > 0.97


# ------------------------------------------------------------------------------------------------ the command


def test_the_command(tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a tested feature with efas' own figures beside, the smallest p first; a sentence an energy on stderr."""
    words = ["efas", "test", "--db", str(tiny_warehouse), "--energy", "nll,hopfield", "--layer", "2"]
    assert main([*words, "--permutations", "199", "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    with Warehouse(tiny_warehouse) as warehouse:
        efas = warehouse.sql(
            "SELECT energy, feature, z, p_value, q_value FROM efas WHERE layer = 2 AND category = 'all' "
            "AND gradient = 'decoder' AND energy IN ('nll', 'hopfield') AND q_value IS NOT NULL"
        ).fetchall()
    assert {(row["energy"], row["feature"]) for row in rows} == {(energy, feature) for energy, feature, *_ in efas}
    by_key = {(row["energy"], row["feature"]): row for row in rows}
    for energy, feature, *figures in efas:
        row = by_key[energy, feature]
        assert [row["z"], row["p_value"], row["q_value"]] == pytest.approx(figures, rel=1e-5)
    p = [row["p_permutation"] for row in rows]
    assert p == sorted(p)
    for energy in ("nll", "hopfield"):
        own = [row for row in rows if row["energy"] == energy]
        expected = stats.false_discovery_control([row["p_permutation"] for row in own])
        assert [row["q_permutation"] for row in own] == pytest.approx(expected, rel=1e-4)
    assert err.count("\n") == 2
    assert {line.split(":")[0] for line in err.splitlines()} == {"nll", "hopfield"}
    assert main([*words, "--permutations", "19", "--rows", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 7
    assert f"3 of {len(rows)} rows are shown" in err


EDITS = {
    "no run": ("DELETE FROM runs", "make one with elw ingest"),
    "nothing tested": ("UPDATE feature_statistics SET q_value = NULL", "ingest more text"),
    "another model": ("UPDATE runs SET store_gradients = false, model_sha256 = 'x'", "another model now"),
    "no model": ("UPDATE runs SET store_gradients = false, model = './nowhere'", "does not exist"),
    "another way": (
        "UPDATE runs SET store_gradients = false, "
        "settings = '{\"energies\": {\"nll\": 0, \"logit_lens\": 0, \"tuned_lens\": 0, "
        "\"attention\": 0, \"hopfield\": 0}}'",
        "in another way",
    ),
    "no SAE": ("UPDATE saes SET source = 'nowhere'", "The SAE of layer 1 cannot be read"),
    "another SAE": ("UPDATE saes SET sae_sha256 = 'x'", "is another now than in run 1"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_missing_is_a_sentence(
    edit: str, tiny_warehouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = tmp_path / "edited.duckdb"
    shutil.copy(tiny_warehouse, db)
    statement, sentence = EDITS[edit]
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql(statement)
    capsys.readouterr()
    assert main(["efas", "test", "--db", str(db), "--permutations", "19"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--layer", "3"], "has no layer 3 (did you mean 2?): choose among 1, 2"),
        (["--energy", "entropy"], "has no energy entropy"),
        (["--category", "poems"], "has no category poems: choose among all, code, natural"),
        (["--permutations", "18"], "--permutations"),
        (["--layer", "one"], "--layer is 'one'"),
    ],
)
def test_wrong_options_are_a_sentence(
    words: list[str], sentence: str, tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["efas", "test", "--db", str(tiny_warehouse), *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sentence in err


def test_no_warehouse_is_exit_code_3(tmp_path: Path) -> None:
    assert main(["efas", "test", "--db", str(tmp_path / "none.duckdb")]) == 3
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ SmolLM2


@pytest.mark.real
@pytest.mark.skipif(not shipped_folder(DEFAULT_MODEL, 10).exists(), reason="no SAEs are shipped yet")
def test_real_agreement_with_z(real_warehouse: Path) -> None:
    """On SmolLM2 z and the permutation rank nll's features alike, and the positive control is found by both."""
    outcomes = check_run(real_warehouse, PermutationOptions(energies=("nll", "hopfield"), permutations=999))
    for outcome in outcomes:
        agreement = stats.spearmanr(outcome.z, outcome.permuted.z).statistic
        assert agreement > (0.95 if outcome.energy == "nll" else 0.6)
        assert outcome.permuted.random_rejected == pytest.approx(0.05, abs=0.05)
        if outcome.energy == "hopfield":
            assert (outcome.permuted.p <= 0.05).mean() > 0.7
            assert (outcome.permuted.p_sum <= 0.05).mean() > 0.95
        else:
            assert abs((outcome.permuted.p <= 0.05).mean() - (outcome.p_value <= 0.05).mean()) < 0.08
    assert len(list(permutation_sentences(outcomes))) == 2
