"""The test of the direction: what is stored, and what is said of directions that are exchangeable and that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.ingest.statistics import directions
from energy_lens.ingest.statistics.directions import (
    N_PROBES,
    N_REFERENCES,
    DecoderRows,
    Directions,
    Sizes,
    choose_references,
    direction_test,
    packed,
    random_probes,
    unpacked,
    without_own,
)
from energy_lens.ingest.statistics.stream import LayerRow, LayerStatistics

Floats = NDArray[np.float64]

D_MODEL, D_SAE = 96, 256


def make_sae(
    generator: np.random.Generator, d_sae: int = D_SAE, d_model: int = D_MODEL, k: int = 6
) -> SparseAutoencoder:
    """Rows that share a common part, as those of trained SAEs do, and differ in length."""
    rows = generator.standard_normal((d_sae, d_model)) + 0.3 * generator.standard_normal(d_model)
    rows *= np.exp(generator.standard_normal((d_sae, 1)) / 2)
    W_dec = torch.from_numpy(rows).float()
    return SparseAutoencoder(3, k, W_dec.T.contiguous(), torch.zeros(d_sae), W_dec, torch.zeros(d_model))


def outcome(sae: SparseAutoencoder, m: Floats, covariance: Floats, seed: int = 0) -> directions.DirectionTest:
    """The test of every feature for given m [feature, d_model] and Σ∇̃∇̃ᵀ, through what is stored."""
    rows = sae.W_dec.double().numpy()
    shared, features = Directions.of(sae, choose_references(sae, seed), seed), np.arange(sae.d_sae)
    along = (m @ shared.vectors.double().numpy().T).astype(np.float32)
    along = unpacked(*packed(without_own(along, features, shared.references)))
    compared = DecoderRows(rows, shared.references, shared.probes.double().numpy())
    sizes = Sizes(compared, (m * rows).sum(1), np.einsum("kd,de,ke->k", rows, covariance, rows))
    return direction_test(sizes, features, along)


# ------------------------------------------------------------------------------------------------ what is stored


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=st.floats(-1e6, 1e6, width=32)))
def test_packing_keeps_a_row_to_half_a_unit(along: NDArray[np.float32]) -> None:
    """Whatever the sizes, zeros included: no number is off by more than half of a 31st of its row's largest."""
    scale, codes = packed(along)
    assert codes.dtype == np.int8
    assert np.abs(codes).max(initial=0) <= 31
    error = np.abs(unpacked(scale, codes) - along)
    assert (error <= np.abs(along).max(axis=1, initial=0)[:, None] * (0.5 / 31 + 1e-6) + 1e-38).all()


def test_references_are_a_seeded_choice_of_living_features() -> None:
    """Features without quartiles never fired in the SAE's training: none of them is a reference."""
    sae = make_sae(np.random.default_rng(0))
    sae.quartiles = torch.rand(D_SAE, 3)
    sae.quartiles[::2] = torch.nan
    chosen = choose_references(sae, 7)
    assert len(set(chosen)) == N_REFERENCES == len(chosen)
    assert (chosen % 2 == 1).all()
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, choose_references(sae, 7))
    assert set(chosen) != set(choose_references(sae, 8))
    sae.quartiles[:] = torch.nan  # an SAE that came without: all take part
    assert (choose_references(sae, 7) % 2 == 0).any()


@pytest.mark.parametrize("d_model", [24, N_PROBES, 576])
def test_probes_are_orthonormal(d_model: int) -> None:
    probes = random_probes(d_model, 3, 15).double()
    assert probes.shape == (min(N_PROBES, d_model), d_model)
    torch.testing.assert_close(probes @ probes.T, torch.eye(len(probes), dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(probes, random_probes(d_model, 3, 15).double())


def test_the_stream_sums_along_the_directions() -> None:
    """⟨m_j, direction⟩ of the stream is that of m_j summed over tokens, and along d_j it is ΣS_c."""
    generator = np.random.default_rng(1)
    sae = make_sae(generator, d_sae=40, d_model=16, k=4)
    shared = Directions.of(sae, np.array([3, 17, 20]), 0)
    collected = LayerStatistics(sae, ["nll"], shared)
    m = np.zeros((40, 16))
    for _ in range(3):
        shape = (6, 20)
        included = torch.from_numpy(generator.random(shape) < 0.8)
        indices = torch.from_numpy(np.array([[generator.permutation(40)[:4] for _ in range(20)] for _ in range(6)]))
        values = torch.from_numpy(generator.gamma(2, size=(*shape, 4))).float() * included[..., None]
        gradients = torch.from_numpy(generator.standard_normal((*shape, 16))).float()
        found = collected.add(LayerRow(included, SparseActivations(values, indices), {"nll": gradients}))
        centred = np.where(included[..., None], gradients, np.nan)
        centred -= np.nanmean(centred, axis=1, keepdims=True)
        for c in range(6):
            mates = np.nanmean(np.delete(centred, c, axis=0), axis=0)
            inside = centred[c][found.counted[c]] - mates[found.counted[c]]
            inside -= inside.mean(0)
            a = np.zeros((20, 40))
            np.put_along_axis(a, indices[c].numpy(), values[c].numpy(), 1)
            m -= a[found.counted[c]].T @ inside
    features, along = collected.along("nll")
    expected = m @ shared.vectors.double().numpy().T
    expected[[3, 17, 20], [0, 1, 2]] = 0
    np.testing.assert_allclose(along, expected[features], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(collected.columns("nll")["sum_s"], (m * sae.W_dec.double().numpy()).sum(1), atol=1e-3)


# ------------------------------------------------------------------------------------------------ what it says


def skewed_covariance(generator: np.random.Generator, d_model: int = D_MODEL) -> tuple[Floats, Floats]:
    """Anisotropic, as those of gradients are, and its root."""
    root = np.linalg.qr(generator.standard_normal((d_model, d_model)))[0] * np.exp(
        generator.standard_normal(d_model) / 2
    )
    return root @ root.T, root


def test_noise_is_rejected_at_the_level() -> None:
    """m that is noise of the gradient's own covariance: 5 % and 0.1 % of p, along the row and along a reference."""
    p, p_reference = [], []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        sae = make_sae(generator)
        covariance, root = skewed_covariance(generator)
        found = outcome(sae, generator.standard_normal((D_SAE, D_MODEL)) @ root.T, covariance, seed)
        p.append(found.p)
        p_reference.append(found.p_reference)
    for values in map(np.concatenate, (p, p_reference)):
        assert 0.035 < (values < 0.05).mean() < 0.065
        assert (values < 0.001).mean() < 0.004


def test_an_unusual_gradient_along_no_feature_is_not_this_direction() -> None:
    """All m_j share a large part that is no row's own: any direction sees it, and p keeps its level."""
    p = []
    for seed in range(12):
        generator = np.random.default_rng(100 + seed)
        sae = make_sae(generator)
        covariance, root = skewed_covariance(generator)
        common = 5 * generator.standard_normal((D_SAE, 4)) @ generator.standard_normal((4, D_MODEL))
        found = outcome(sae, (generator.standard_normal((D_SAE, D_MODEL)) + common) @ root.T, covariance, seed)
        p.append(found.p)
    assert 0.03 < (np.concatenate(p) < 0.05).mean() < 0.07


@pytest.mark.parametrize(("cosine", "low", "high"), [(0.0, 0.0, 0.09), (0.3, 0.5, 1.0), (0.6, 0.98, 1.0)])
def test_an_alignment_is_found_and_its_cosine_is_told(cosine: float, low: float, high: float) -> None:
    """Power grows with the cosine of m_j and d_j, and the cosine's error is that of 64 probes: 9 % of itself."""
    generator = np.random.default_rng(5)
    sae = make_sae(generator)
    rows = sae.W_dec.double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    noise = generator.standard_normal((D_SAE, D_MODEL))
    noise -= (noise * unit).sum(1, keepdims=True) * unit
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    found = outcome(sae, cosine * unit + np.sqrt(1 - cosine**2) * noise, np.eye(D_MODEL))
    assert low <= (found.p < 0.05).mean() <= high
    assert np.abs(found.cosine).max() <= 1
    if cosine:
        assert np.abs(np.median(found.cosine) / cosine - 1) < 0.02
        assert (found.cosine / cosine).std() < 0.12


def test_the_cosine_is_exact_in_few_dimensions() -> None:
    generator = np.random.default_rng(6)
    sae = make_sae(generator, d_model=48)
    m = generator.standard_normal((D_SAE, 48))
    rows = sae.W_dec.double().numpy()
    exact = (m * rows).sum(1) / np.linalg.norm(m, axis=1) / np.linalg.norm(rows, axis=1)
    # Rounding to a 31st of the row's largest number leaves a few hundredths.
    np.testing.assert_allclose(outcome(sae, m, np.eye(48)).cosine, exact, rtol=0.03)


def test_too_few_rows_are_no_comparison() -> None:
    """Eight references other than the own, or nothing is said; the cosine needs none, and to have none is no error."""
    lonely = Directions.of(make_sae(np.random.default_rng(0)), np.arange(0), 0)
    assert lonely.vectors.shape == (N_PROBES, D_MODEL)
    nothing = np.ones(D_SAE)
    compared = DecoderRows(np.ones((D_SAE, D_MODEL)), lonely.references, lonely.probes.double().numpy())
    sizes = Sizes(compared, nothing, nothing)
    assert np.isnan(direction_test(sizes, np.arange(3), np.ones((3, N_PROBES))).p_reference).all()
    generator = np.random.default_rng(7)
    for d_sae, is_tested in ((8, False), (9, True)):
        found = outcome(
            make_sae(generator, d_sae=d_sae, k=2), generator.standard_normal((d_sae, D_MODEL)), np.eye(D_MODEL)
        )
        assert np.isfinite(found.p).all() == is_tested
        assert np.isfinite(found.t).any() == is_tested
        assert np.isnan(found.p_reference).all()  # seven others at most
        assert np.isfinite(found.cosine).all()
