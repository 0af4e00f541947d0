"""Documents as the samples: sums by document, intervals of a correlation, the t test; beside scipy and simulations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from energy_lens.ingest.statistics.across_documents import TokenSums, enough, influence, interval, mean_test
from energy_lens.ingest.statistics.documents import DocumentSums
from energy_lens.ingest.statistics.stream import ContextSums, PairSums

Floats = NDArray[np.float64]


def token_sums(a: Floats, g: Floats, documents: NDArray[np.int64]) -> tuple[TokenSums, Floats]:
    """Sums by document of one feature's tokens, g² exact, and Σg²."""

    def by_document(values: Floats) -> Floats:
        sums: Floats = np.bincount(documents, values)[:, None]
        return sums

    n = np.bincount(documents).astype(float)
    sums = TokenSums(n, n, *(by_document(x) for x in (a, a**2, g, a * g, g**2)), by_document(np.ones(len(a))))
    return sums, np.array([(g**2).sum()])


@given(st.integers(0, 2**32 - 1), st.integers(10, 30))
def test_influences_sum_to_zero_and_tell_what_a_document_does(seed: int, n_documents: int) -> None:
    """ΣI_d = 0, and leaving one of many documents out moves r by about −I_d; of three it would move it by more."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(200, 400, n_documents)
    documents = np.repeat(np.arange(n_documents), sizes)
    a = np.maximum(generator.standard_normal(sizes.sum()), 0)
    g = 0.3 * a + generator.standard_normal(sizes.sum())
    sums, total = token_sums(a, g, documents)
    found = influence(sums, total)[:, 0]
    assert abs(found.sum()) < 1e-10
    r = stats.pearsonr(a, g).statistic
    left_out = np.array([stats.pearsonr(a[documents != d], g[documents != d]).statistic for d in range(n_documents)])
    np.testing.assert_allclose(r - left_out, found * n_documents / (n_documents - 1), atol=3e-2 / n_documents)


@pytest.mark.parametrize("n_documents", [10, 30])
@pytest.mark.parametrize("r", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_intervals_cover(n_documents: int, r: float, spread: float) -> None:
    """95 % intervals cover 92 to 99 % in 300 simulations, unequal documents and slopes that vary between them."""
    generator = np.random.default_rng([n_documents, int(100 * r), int(10 * spread)])
    sizes = np.maximum((60 * np.exp(0.7 * generator.standard_normal(n_documents))).astype(int), 10)
    documents = np.repeat(np.arange(n_documents), sizes)
    # Of a large sample of documents, since documents of unlike slopes have no one correlation by design.
    slope_deviation = spread * np.sqrt(1 - r**2)
    noise = np.sqrt(1 - r**2 - slope_deviation**2)
    covered = 0
    for _ in range(300):
        a = generator.standard_normal(sizes.sum())
        slopes = r + slope_deviation * generator.standard_normal(n_documents)
        g = slopes[documents] * a + noise * generator.standard_normal(len(a))
        sums, total = token_sums(a, g, documents)
        i2, quantile = interval(sums, total)
        score = np.corrcoef(a, g)[0, 1]
        margin = quantile[0] * np.sqrt(i2[0] * n_documents / (n_documents - 1)) / (1 - score**2)
        covered += abs(np.arctanh(score) - np.arctanh(r)) <= margin
    assert 0.92 <= covered / 300 <= 0.995


def test_what_does_not_vary_has_no_interval() -> None:
    sums, total = token_sums(np.zeros(100), np.arange(100.0), np.arange(100) % 12)
    i2, quantile = interval(sums, total)
    assert np.isnan(i2).all()
    assert np.isnan(quantile).all()


@pytest.mark.parametrize(
    ("sizes", "is_enough"),
    [([100] * 10, True), ([100] * 9, False), ([100] * 9 + [0], False), ([10_000] + [10] * 20, False),
     ([100] * 5 + [1] * 5, True), ([100] * 4 + [1] * 6, False)],
)  # fmt: skip
def test_few_documents_are_not_enough(sizes: list[int], is_enough: bool) -> None:
    """Ten documents that are worth five equal ones, those without tokens not counted."""
    assert enough(np.array(sizes, dtype=float)) == is_enough


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_the_t_test_is_scipys(seed: int, n: int) -> None:
    """Over the documents that take part, from ten of them."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((n, 5)) + generator.standard_normal(5)
    takes_part = generator.random((n, 5)) < 0.7
    found = mean_test(values, takes_part)
    for j in range(5):
        chosen = values[takes_part[:, j], j]
        if len(chosen) >= 10:
            assert found[j] == pytest.approx(stats.ttest_1samp(chosen, 0).pvalue, rel=1e-9)
        else:
            assert np.isnan(found[j])


@given(st.integers(0, 2**32 - 1))
def test_sums_by_document_are_those_of_all_rows(seed: int) -> None:
    """Whichever rows a document's contexts stand in, its sums of a feature are over all of them."""
    generator = np.random.default_rng(seed)
    collected = DocumentSums(["nll", "other"])
    expected: dict[tuple[int, int], Floats] = {}
    for _ in range(generator.integers(1, 5)):
        documents = generator.permutation(9)[: generator.integers(1, 6)]
        pairs = np.argwhere(generator.random((len(documents), 7)) < 0.5)
        sums = generator.standard_normal((4, len(pairs)))
        s, g2, norm2, a2h2 = map(torch.from_numpy, sums)
        contexts, features = map(torch.from_numpy, pairs.T)
        other = PairSums(2 * s, 2 * g2, 2 * norm2)
        collected.add(ContextSums(contexts, features, {"nll": PairSums(s, g2, norm2), "other": other}, a2h2), documents)
        for (context, feature), values in zip(pairs.tolist(), sums.T, strict=True):
            key = int(documents[context]), feature
            expected[key] = expected.get(key, np.zeros(4)) + values
    for energy, factor in (("nll", 1), ("other", 2)):
        columns = collected.columns(energy)
        keys = list(zip(columns["document_id"].tolist(), columns["feature"].tolist(), strict=True))
        assert sorted(keys) == sorted(expected)
        for i, key in enumerate(keys):
            names = ("sum_s", "sum_g2", "sum_norm2")
            np.testing.assert_allclose([columns[n][i] for n in names], factor * expected[key][:3], atol=1e-5)
            if energy == "nll":
                assert columns["sum_a2h2"][i] == pytest.approx(expected[key][3], abs=1e-5)
        assert energy == "nll" or np.isnan(columns["sum_a2h2"].astype(float)).all()
