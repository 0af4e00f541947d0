"""The comparison behind docs/significance.md: its tests, its shuffles and its synthetic data."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def _load(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package; once, as its types must be the same for all who import it."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


association = _load("association")
study = _load("null_situations")
made = _load("synthetic")
streamed = _load("streamed")
situations = _load("situations")
Contexts, compare, enough_to_test = association.Contexts, association.compare, association.enough_to_test


# ------------------------------------------------------------------------------------------------ false positives


def _share(noise: object, seeds: int, size: float = 0.0, level: float = 0.05) -> dict[str, float]:
    """Share of p below a level, by test."""
    samples = [made.synthetic(noise, seed) for seed in range(seeds)]
    found = [streamed.p_values(made.planted(x, size) if size else x, seed) for seed, x in enumerate(samples)]
    return {test: float(np.nanmean(np.concatenate([p[test] for p in found]) < level)) for test in found[0]}


SMALL = {"n_documents": 16, "n_contexts": 10, "n_positions": 32, "n_features": 96, "d_model": 40}


def test_what_elw_tests_holds_its_level_where_tokens_and_contexts_do_not() -> None:
    """Drift, AR(1) noise and document levels in a and g: z, z_documents and t_specific keep 5 %, all find an effect."""
    noise = made.Noise(drift=0.3, **SMALL)
    rejected = _share(noise, 5)
    for test in ("within", "z_documents", "t_specific", "reference", "z_null"):
        assert 0.02 < rejected[test] < 0.08, test
    assert rejected["tokens"] > 0.2
    assert rejected["contexts"] > 0.12
    detected = _share(noise, 1, size=0.06)
    for test in ("within", "z_documents", "t_specific"):
        assert detected[test] > 0.7, test


def test_each_test_keeps_to_its_question() -> None:
    """A gradient that is atypical in one direction: only t_specific says no. Document slopes: only z_documents does."""
    atypical = _share(made.Noise(atypical="common", **SMALL), 6)
    assert atypical["within"] > 0.25
    assert atypical["z_documents"] > 0.2
    assert atypical["t_specific"] < 0.09
    slopes = _share(made.Noise(slopes=0.2, **SMALL), 3)
    assert slopes["within"] > 0.2
    assert slopes["t_specific"] > 0.2
    assert slopes["z_documents"] < 0.09


# ------------------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray, Contexts]:
    """Noise with some tokens left out and contexts of unequal length."""
    a, g, contexts = _part_of(_unequal())
    return a, g, contexts


def _unequal() -> object:
    noise = made.Noise(0.5, drift=0.3, n_documents=16, n_contexts=4, n_positions=20, n_features=24, d_model=12)
    whole = made.synthetic(noise, seed=3)
    generator = np.random.default_rng(3)
    included = np.arange(20) < generator.integers(8, 21, size=len(whole.a))[:, None]
    included &= generator.random(included.shape) < 0.95
    contexts = Contexts(included, whole.contexts.documents, whole.contexts.documents, whole.contexts.rows)
    gradients = whole.gradients * included[..., None]
    return made.Sample(whole.a * included[..., None], gradients, whole.decoder, contexts)


def _part_of(whole: object) -> tuple[np.ndarray, np.ndarray, Contexts]:
    return whole.a, whole.g, whole.contexts


def test_tokens_is_pearsons_test_of_scipy(sample: tuple[np.ndarray, np.ndarray, Contexts]) -> None:
    """r and its t test over the counted tokens."""
    a, g, contexts = sample
    counted = contexts.counted()
    found = compare(a, g, np.zeros_like(g), counted, contexts.documents)["tokens"]
    expected = [stats.pearsonr(a[counted][:, j], g[counted][:, j]).pvalue for j in range(a.shape[-1])]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_contexts_are_clusters(sample: tuple[np.ndarray, np.ndarray, Contexts]) -> None:
    """t = score over its clustered standard error, written out cluster by cluster, with Student's t."""
    a, g, contexts = sample
    counted = contexts.counted()
    found = compare(a, g, np.zeros_like(g), counted, contexts.documents)["contexts"]
    clusters = np.broadcast_to(np.arange(len(a))[:, None], counted.shape)[counted]
    for j in range(a.shape[-1]):
        x, y = a[counted][:, j].astype(np.float64), g[counted][:, j].astype(np.float64)
        u = [((x - x.mean()) * (y - y.mean()))[clusters == c].sum() for c in np.unique(clusters)]
        error = np.sqrt(np.sum(np.square(u)) * len(u) / (len(u) - 1)) / (len(x) * x.std() * y.std())
        score = np.corrcoef(x, y)[0, 1]
        assert found[j] == pytest.approx(2 * stats.t.sf(abs(score) / error, len(u) - 1), rel=1e-3)


def test_the_interval_is_that_of_documents_left_out(sample: tuple[np.ndarray, np.ndarray, Contexts]) -> None:
    """The standard error of artanh r is within a tenth of the jackknife's over documents, and p < 0.05 leaves 0 out."""
    a, g, contexts = sample
    counted = contexts.counted()
    found = compare(a, g, np.zeros_like(g), counted, contexts.documents)["interval"]
    n, x, x2, y, xy, y2 = (
        association.sum_by(contexts.documents, (v * counted[..., None]).sum(1, dtype=np.float64))
        for v in (np.ones_like(g), a, a**2, g, a * g, g**2)
    )
    sums = association.TokenSums(n[:, 0], np.zeros(len(n)), x, x2, y, xy, y2, np.zeros_like(y2))
    interval = association.stored_interval(sums, y2.sum(0))
    np.testing.assert_allclose(interval.p, found, rtol=1e-3)
    np.testing.assert_array_equal(interval.p < 0.05, ~interval.covers(0.0))
    jackknife = []
    for j in range(g.shape[-1]):
        of_documents = [(a[..., j][m], g[..., j][m]) for m in _without_each(contexts.documents, counted)]
        without = np.arctanh([np.corrcoef(*pair)[0, 1] for pair in of_documents])
        jackknife.append(np.sqrt((len(without) - 1) / len(without) * np.sum((without - without.mean()) ** 2)))
    assert np.median(interval.error / jackknife) == pytest.approx(1, abs=0.1)


def _without_each(documents: np.ndarray, counted: np.ndarray) -> list[np.ndarray]:
    return [counted & (documents != document)[:, None] for document in np.unique(documents)]


def test_dense_tests_are_those_of_the_stream() -> None:
    """z, z_documents and t_specific from dense arrays equal those of the package's stream, to the byte of its sums."""
    whole = _unequal()
    a, g, contexts = _part_of(whole)
    counted, within = contexts.counted(), contexts.tested(g)
    dense, found = compare(a, g, within, counted, contexts.documents), streamed.p_values(whole, seed=1)
    for test in ("within", "z_documents"):
        np.testing.assert_allclose(dense[test], found[test], rtol=1e-3, atol=1e-6)
    kept = streamed.streamed(whole, seed=1)
    np.testing.assert_array_equal(kept.counted, counted)
    references = kept.directions.references
    sizes = np.einsum("ctf,ctk->fk", a, within) / np.sqrt(np.einsum("ctf,ctf->f", within, within))
    for j, p in enumerate(found["t_specific"]):
        others = references[references != j]
        t = sizes[j, j] / np.sqrt(np.mean(sizes[j, others] ** 2))
        assert p == pytest.approx(2 * stats.t.sf(abs(t), len(others)), abs=0.03)


def test_planted_effects_have_their_size() -> None:
    """score_within rises by the size that was planted along the feature's row."""
    sample = made.synthetic(made.Noise(**SMALL), 0)

    def score(x: object) -> np.ndarray:
        a, g, contexts = _part_of(x)
        centred_a, within = association.centred_over(a, contexts.counted()), contexts.tested(g)
        s, a2, g2 = (np.einsum("ctf,ctf->f", *pair) for pair in ((a, within), (centred_a,) * 2, (within,) * 2))
        return s / np.sqrt(a2 * g2)

    difference = score(made.planted(sample, 0.05)) - score(sample)
    assert np.mean(difference) == pytest.approx(0.05, rel=0.12)


def test_draws_share_their_structure() -> None:
    """The same decoder and other documents: what a draw estimates is what others of the structure say."""
    noise = situations.SYNTHETIC["short tails"]
    first, second = (made.synthetic(noise, 4, draw) for draw in (0, 1))
    np.testing.assert_array_equal(first.decoder, second.decoder)
    assert np.abs(first.a - second.a).max() > 1
    r = [streamed.correlation(streamed.totals(x)) for x in (first, second)]
    assert np.corrcoef(*r)[0, 1] > 0.5


def test_a_shuffled_pairing_is_centred_without_the_tested_context() -> None:
    """The mate whose gradient belongs to the tested activations is left out of the mean, and only that one."""
    generator = np.random.default_rng(0)
    documents = np.arange(6)
    contexts = Contexts(np.ones((6, 4), bool), documents, np.roll(documents, 1), np.zeros(6, np.int64))
    g = contexts.centred(generator.standard_normal((6, 4, 2)).astype(np.float32))
    tested = contexts.less_mates(g)
    for c in range(6):
        mates = [m for m in range(6) if m != c and contexts.gradient_documents[m] != documents[c]]
        assert len(mates) == 4
        np.testing.assert_allclose(tested[c], g[c] - g[mates].mean(0), atol=1e-6)


def test_enough_needs_tokens_contexts_and_documents() -> None:
    """A feature on 60 tokens is tested in 12 contexts of 6 documents, not in 6 contexts, nor in 4 documents."""
    a = np.zeros((24, 10, 3), np.float32)
    documents = np.arange(24) // 2
    a[:12, :5, 0] = 1
    a[:12:2, :10, 1] = 1
    a[:12, :5, 2] = 1
    counted = np.ones((24, 10), bool)
    np.testing.assert_array_equal(enough_to_test(a, counted, documents), [True, False, True])
    np.testing.assert_array_equal(enough_to_test(a, counted, documents // 3), [False, False, False])


# ------------------------------------------------------------------------------------------------ shuffles


@pytest.mark.parametrize("shuffle", ["shuffle_documents", "shuffle_contexts"])
@pytest.mark.parametrize("seed", range(3))
def test_shuffles_pair_other_documents_of_the_same_category(shuffle: str, seed: int) -> None:
    """No document meets itself, no context is used twice on a side, rows hold no document twice, categories stay."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 8, size=20)
    documents = np.arange(20).repeat(lengths)
    places = np.concatenate([np.arange(n) for n in lengths])
    corpus = study.Corpus(documents, np.array(["code", "prose"])[documents % 2], places, np.arange(len(documents)))
    pairing = getattr(study, shuffle)(corpus, generator)
    own, other = documents[pairing.activations], documents[pairing.gradients]
    assert len(own) >= len(documents) // 3
    assert (own != other).all()
    assert (own % 2 == other % 2).all()
    if shuffle == "shuffle_documents":
        assert (places[pairing.activations] == places[pairing.gradients]).all()
        assert len({*zip(own.tolist(), other.tolist(), strict=True)}) == len({*own.tolist()})
    for side in (pairing.activations, pairing.gradients):
        assert len(np.unique(side)) == len(side)
        pairs = list(zip(pairing.rows.tolist(), documents[side].tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
    for row in np.unique(pairing.rows):
        assert len({*(own[pairing.rows == row] % 2).tolist()}) == 1
