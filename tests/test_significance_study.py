"""The comparison behind docs/significance.md: its four tests, its shuffles and its synthetic data."""

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
    """A module of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


association = _load("association")
study = _load("null_situations")
Contexts, compare, enough_to_test = association.Contexts, association.compare, association.enough_to_test


# ------------------------------------------------------------------------------------------------ false positives


def test_only_the_within_context_test_holds_its_level() -> None:
    """Drift, AR(1) noise and document levels in a and g, 20 contexts a document: z, as the stream has it, keeps 5 %.

    Tokens as independent reject more than twice that, and so do contexts.
    """
    noise = study.Noise(levels=0.3, drift=0.3, n_documents=16, n_contexts=20, n_positions=32)
    found = [study.tested(*study.synthetic(noise, seed)) for seed in range(10)]
    p = {test: np.concatenate([one[test] for one in found]) for test in found[0]}
    rejected = {test: (values < 0.05).mean() for test, values in p.items()}
    assert 0.02 < rejected["within"] < 0.08
    assert (p["within"] < 0.001).mean() <= 0.005
    assert rejected["tokens"] > 0.1
    assert rejected["contexts"] > 0.1
    planted = study.tested_with_effects(noise, 0, [0.05])[0.05]
    assert (planted["within"] < 0.05).mean() > 0.9


# ------------------------------------------------------------------------------------------------ the four tests


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray, Contexts]:
    """Noise with some tokens left out and contexts of unequal length."""
    noise = study.Noise(levels=0.5, drift=0.3, n_documents=16, n_contexts=4, n_positions=20, n_features=6)
    a, g, whole = study.synthetic(noise, seed=3)
    generator = np.random.default_rng(3)
    included = np.arange(20) < generator.integers(8, 21, size=len(a))[:, None]
    included &= generator.random(included.shape) < 0.95
    return a, g, Contexts(included, whole.documents, whole.gradient_documents, whole.rows)


def test_tokens_is_pearsons_test_of_scipy(sample: tuple[np.ndarray, np.ndarray, Contexts]) -> None:
    """r and its t test over the counted tokens."""
    a, g, contexts = sample
    counted = contexts.counted()
    found = compare(a, g, np.zeros_like(g), counted, contexts.documents)["tokens"]
    expected = [stats.pearsonr(a[counted][:, j], g[counted][:, j]).pvalue for j in range(a.shape[-1])]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("test", ["contexts", "documents"])
def test_clusters_are_the_interval_of_score(test: str, sample: tuple[np.ndarray, np.ndarray, Contexts]) -> None:
    """t = score over its clustered standard error, written out cluster by cluster, with Student's t."""
    a, g, contexts = sample
    counted = contexts.counted()
    found = compare(a, g, np.zeros_like(g), counted, contexts.documents)[test]
    clusters = contexts.documents if test == "documents" else np.arange(len(a))
    clusters = np.broadcast_to(clusters[:, None], counted.shape)[counted]
    for j in range(a.shape[-1]):
        x, y = a[counted][:, j].astype(np.float64), g[counted][:, j].astype(np.float64)
        u = [((x - x.mean()) * (y - y.mean()))[clusters == c].sum() for c in np.unique(clusters)]
        error = np.sqrt(np.sum(np.square(u)) * len(u) / (len(u) - 1)) / (len(x) * x.std() * y.std())
        score = np.corrcoef(x, y)[0, 1]
        assert found[j] == pytest.approx(2 * stats.t.sf(abs(score) / error, len(u) - 1), rel=1e-3)


def test_within_is_the_stream(sample: tuple[np.ndarray, np.ndarray, Contexts]) -> None:
    """The dense test and the package's stream give the same p and count the same tokens."""
    a, g, contexts = sample
    a = a * contexts.included[..., None]
    dense = compare(a, g, contexts.tested(g), contexts.counted(), contexts.documents)["within"]
    z, counted = study.stream(a, g, contexts.included)
    np.testing.assert_allclose(dense, 2 * stats.norm.sf(np.abs(z)), rtol=1e-4)
    np.testing.assert_array_equal(counted, contexts.counted())


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
