"""Statistics taken in the stream, against a reference that loops over contexts, tokens and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.ingest.statistics import stream as statistics
from energy_lens.ingest.statistics.stream import LayerRow, LayerStatistics

Floats = NDArray[np.float64]

WIDTH, FEATURES, ACTIVE = 5, 7, 2


@dataclass
class Row:
    """Contexts side by side, in float64."""

    included: NDArray[np.bool_]  #: [context, position]
    a: Floats  #: [context, position, feature], 0 where not included
    gradients: dict[str, Floats]  #: energy: [context, position, d_model]; anything where not included

    def as_tensors(self) -> LayerRow:
        """The same as the stream gets it: the ACTIVE largest activations in slots, float32."""
        indices = np.argsort(-self.a, axis=-1, kind="stable")[..., :ACTIVE].copy()
        values = np.take_along_axis(self.a, indices, -1)
        return LayerRow(
            torch.from_numpy(self.included),
            SparseActivations(torch.from_numpy(values).float(), torch.from_numpy(indices)),
            {energy: torch.from_numpy(gradient).float() for energy, gradient in self.gradients.items()},
        )


def make_row(included: NDArray[np.bool_], generator: np.random.Generator, energies: Sequence[str] = ("nll",)) -> Row:
    """Random activations (some slots empty) and gradients with context levels, as exact float32 numbers."""
    n_contexts, n_positions = included.shape
    a = np.zeros((n_contexts, n_positions, FEATURES))
    for place in np.argwhere(included):
        features = generator.permutation(FEATURES)[:ACTIVE]
        a[(*place, features)] = generator.gamma(2.0, size=ACTIVE) * (generator.random(ACTIVE) < 0.8)
    gradients = {
        energy: generator.standard_normal((n_contexts, n_positions, WIDTH))
        + generator.standard_normal((n_contexts, 1, WIDTH))
        for energy in energies
    }
    return Row(
        included,
        a.astype(np.float32).astype(np.float64),
        {energy: gradient.astype(np.float32).astype(np.float64) for energy, gradient in gradients.items()},
    )


def make_sae(generator: np.random.Generator, width: int = WIDTH, features: int = FEATURES) -> SparseAutoencoder:
    rows = torch.from_numpy(generator.standard_normal((features, width))).float()
    nothing = torch.zeros(features)
    return SparseAutoencoder(0, ACTIVE, rows.T.contiguous(), nothing, rows, torch.zeros(width))


def reference(rows: Sequence[Row], decoder: Floats, energy: str) -> dict[str, Floats]:
    """feature_moments by the definitions, one context, token and feature after the other."""
    columns = ("sum_g", "sum_g2", "sum_gc2", "n_contexts", "n_counted", "sum_s", "sum_s2", "null_s", "null_s2")
    sums = {name: np.zeros(len(decoder)) for name in (*columns, "n_tokens", "sum_a", "largest_g")}
    for row in rows:
        n_contexts, n_positions = row.included.shape
        for j, d_j in enumerate(decoder):
            g = np.full(row.included.shape, np.nan)
            for c in range(n_contexts):
                for t in range(n_positions):
                    if row.included[c, t]:
                        g[c, t] = -row.gradients[energy][c, t] @ d_j
                        sums["sum_g"][j] += g[c, t]
                        sums["sum_g2"][j] += g[c, t] ** 2
                        sums["n_tokens"][j] += 1
                        sums["sum_a"][j] += row.a[c, t, j]
                        size = np.linalg.norm(row.gradients[energy][c, t]) * np.linalg.norm(d_j)
                        sums["largest_g"][j] = max(sums["largest_g"][j], size)
            centred = np.full(g.shape, np.nan)
            for c in range(n_contexts):
                if row.included[c].any():
                    centred[c] = g[c] - np.mean([x for x in g[c] if not np.isnan(x)])
            for c in range(n_contexts):
                tested: list[tuple[float, float]] = []  # a and g less its context's mean and its mates'
                control: list[tuple[float, float]] = []
                following = (c + 1) % n_contexts
                for t in range(n_positions):
                    others = [m for m in range(n_contexts) if m != c and row.included[m, t]]
                    if not row.included[c, t] or len(others) < 3:
                        continue
                    tested.append((row.a[c, t, j], centred[c, t] - np.mean([centred[m, t] for m in others])))
                    if following in others:
                        both_out = [centred[m, t] for m in others if m != following]
                        control.append((row.a[c, t, j], centred[following, t] - np.mean(both_out)))
                n_counted = sum(a > 0 for a, _ in tested)
                s, null_s = covariance(tested), covariance(control)
                sums["sum_gc2"][j] += sum((g_t - np.mean([g_u for _, g_u in tested])) ** 2 for _, g_t in tested)
                sums["sum_s"][j] += s
                sums["sum_s2"][j] += s**2
                sums["null_s"][j] += null_s
                sums["null_s2"][j] += null_s**2
                sums["n_counted"][j] += n_counted
                sums["n_contexts"][j] += n_counted > 0
    return sums


def covariance(pairs: Sequence[tuple[float, float]]) -> float:
    """Σ(a − ā)(g − ḡ): what is left when both are centred over the tokens that count."""
    if not pairs:
        return 0.0
    a, g = np.array(pairs).T
    return float(((a - a.mean()) * (g - g.mean())).sum())


def assert_equal_columns(found: Mapping[str, Any], expected: Mapping[str, Floats], relative: float = 1e-6) -> None:
    """Counts exactly; sums to `relative` of themselves or, where numbers cancel, of the sizes that went in."""
    for name in ("n_contexts", "n_counted"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    g, ag = expected["largest_g"], expected["largest_g"] * expected["sum_a"]
    sizes = {"sum_g": g * expected["n_tokens"], "sum_s": ag, "null_s": ag}
    sizes |= {"sum_g2": g * sizes["sum_g"], "sum_gc2": g * sizes["sum_g"], "sum_s2": ag**2, "null_s2": ag**2}
    for name, size in sizes.items():
        deviation = np.abs(found[name] - expected[name])
        assert (deviation <= relative * np.maximum(size, np.abs(expected[name]))).all(), name


def stream(rows: Sequence[Row], sae: SparseAutoencoder, energies: Sequence[str] = ("nll",)) -> LayerStatistics:
    collected = LayerStatistics(sae, list(energies))
    for row in rows:
        collected.add(row.as_tensors())
    return collected


# ------------------------------------------------------------------------------------------------ equality


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Included tokens of a row: ragged lengths, tokens left out anywhere, now and then a context without any."""
    n_contexts, n_positions = draw(st.integers(1, 9)), draw(st.integers(1, 10))
    lengths = draw(hnp.arrays(np.int64, n_contexts, elements=st.integers(0, n_positions)))
    left_in = draw(hnp.arrays(np.bool_, (n_contexts, n_positions), elements=st.sampled_from([True, True, True, False])))
    return left_in & (np.arange(n_positions) < lengths[:, None])


@settings(max_examples=60)
@given(included=st.lists(masks(), min_size=1, max_size=3), seed=st.integers(0, 2**32 - 1))
def test_every_column_equals_the_reference(included: list[NDArray[np.bool_]], seed: int) -> None:
    """Whatever the lengths and the tokens left out, all columns of both energies equal the loops."""
    generator = np.random.default_rng(seed)
    energies = ("nll", "hopfield")
    sae = make_sae(generator)
    rows = [make_row(mask, generator, energies) for mask in included]
    collected = stream(rows, sae, energies)
    assert collected.n_tokens == sum(int(mask.sum()) for mask in included)
    for energy in energies:
        assert_equal_columns(collected.columns(energy), reference(rows, sae.W_dec.double().numpy(), energy))


def test_long_rows_equal_the_reference() -> None:
    """At eight contexts of 64 tokens each sum is right to 1e-5 of itself, and so are z and its control."""
    generator = np.random.default_rng(0)
    sae = make_sae(generator)
    rows = []
    for _ in range(3):
        included = np.arange(64) < generator.integers(20, 65, size=8)[:, None]
        included[:, 0] = False
        included &= generator.random(included.shape) < 0.97
        rows.append(make_row(included, generator))
    found, expected = stream(rows, sae).columns("nll"), reference(rows, sae.W_dec.double().numpy(), "nll")
    assert_equal_columns(found, expected)
    for name in ("sum_g2", "sum_gc2", "sum_s2", "null_s2"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
    for s, s2 in (("sum_s", "sum_s2"), ("null_s", "null_s2")):
        z, expected_z = (sums[s] / np.sqrt(sums[s2]) for sums in (found, expected))
        np.testing.assert_allclose(z, expected_z, atol=1e-5)


@given(included=masks(), seed=st.integers(0, 2**32 - 1))
def test_gradients_at_activations_and_counted_tokens(included: NDArray[np.bool_], seed: int) -> None:
    """`add` returns g = −⟨∂E/∂x, d_j⟩ at each active slot, its own and the next context's, and the counted tokens."""
    generator = np.random.default_rng(seed)
    sae = make_sae(generator)
    row = make_row(included, generator)
    tensors = row.as_tensors()
    found = LayerStatistics(sae, ["nll"]).add(tensors)
    others = included.sum(0) - included
    np.testing.assert_array_equal(found.counted.numpy(), included & (others >= 3))
    dense = -row.gradients["nll"] @ sae.W_dec.double().numpy().T
    active = tensors.activations.values.numpy() > 0
    following = np.where(np.roll(included, -1, 0)[..., None], np.roll(dense, -1, 0), 0)
    for g, everywhere in ((found.g, dense), (found.mates_g, following)):
        expected = np.take_along_axis(everywhere, tensors.activations.indices.numpy(), -1)
        np.testing.assert_allclose(g["nll"].numpy()[active], expected[active], rtol=1e-5, atol=1e-5)


def test_what_excluded_tokens_hold_does_not_matter() -> None:
    """Gradients at excluded tokens, huge ones included, change no column."""
    generator = np.random.default_rng(3)
    sae = make_sae(generator)
    included = generator.random((6, 12)) < 0.7
    row = make_row(included, generator)
    before = stream([row], sae).columns("nll")
    row.gradients["nll"][~included] = 1e6
    after = stream([row], sae).columns("nll")
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, err_msg=name)


@pytest.mark.parametrize("n_contexts", [1, 2, 3])
def test_too_few_contexts_count_nothing(n_contexts: int) -> None:
    """A row of up to three contexts has fewer than three mates: no S, no counted token; g's own moments stay."""
    generator = np.random.default_rng(n_contexts)
    sae = make_sae(generator)
    row = make_row(np.ones((n_contexts, 9), dtype=bool), generator)
    collected = stream([row], sae)
    columns = collected.columns("nll")
    for name in ("n_contexts", "n_counted", "sum_gc2", "sum_s", "sum_s2", "null_s", "null_s2"):
        assert not columns[name].any(), name
    assert collected.n_tokens == 9 * n_contexts
    assert (columns["sum_g2"] > 0).all()


def test_moments_equal_sums_over_dense_gradients() -> None:
    """Σg and Σg² of every feature, active or not, from summed gradients alone; over many rows in float64."""
    generator = np.random.default_rng(5)
    sae = make_sae(generator)
    rows = [make_row(generator.random((8, 30)) < 0.9, generator) for _ in range(20)]
    columns = stream(rows, sae).columns("nll")
    g = np.concatenate([-row.gradients["nll"][row.included] for row in rows]) @ sae.W_dec.double().numpy().T
    np.testing.assert_allclose(columns["sum_g"], g.sum(0), rtol=1e-6, atol=1e-6 * np.abs(g).sum(0).max())
    np.testing.assert_allclose(columns["sum_g2"], (g**2).sum(0), rtol=1e-6)


def test_gathering_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many decoder rows are gathered at once, every column is the same."""
    generator = np.random.default_rng(6)
    sae = make_sae(generator)
    rows = [make_row(generator.random((8, 20)) < 0.9, generator)]
    whole = stream(rows, sae).columns("nll")
    monkeypatch.setattr(statistics, "GATHER_NUMBERS", 3 * WIDTH * ACTIVE)
    pieces = stream(rows, sae).columns("nll")
    for name, values in whole.items():
        np.testing.assert_allclose(pieces[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


# ------------------------------------------------------------------------------------------------ meaning


def autocorrelated(generator: np.random.Generator, shape: tuple[int, ...], rho: float = 0.6) -> Floats:
    """Standard normal noise of autocorrelation `rho` along positions, the second axis."""
    noise = generator.standard_normal(shape)
    for t in range(1, shape[1]):
        noise[:, t] = rho * noise[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return noise


def simulate(n_rows: int, seed: int, effect: float = 0.0, levels: float = 0.0, drift: float = 0.0) -> dict[str, Floats]:
    """z, z_null and the plain correlation of 64 features over eight documents of `n_rows` contexts of 48 tokens.

    effect: added to feature 0's own g per unit of its activation. levels: sd of a document's level in g; activations
    are the stronger and the more frequent, the higher it is. drift: of both with position. Both are autocorrelated.
    """
    width, features, n_positions = 64, 64, 48
    shape = (8, n_positions, features)
    generator = np.random.default_rng(seed)
    rows = torch.linalg.qr(torch.from_numpy(generator.standard_normal((width, width))))[0].float()
    sae = SparseAutoencoder(0, features, rows.T.contiguous(), torch.zeros(features), rows, torch.zeros(width))
    collected = LayerStatistics(sae, ["nll"])
    all_a, all_g = [], []
    common = levels * generator.standard_normal((8, 1, features)) + drift * np.linspace(-1, 1, n_positions)[:, None]
    for _ in range(n_rows):
        a = np.maximum(autocorrelated(generator, shape) - 1 + 0.7 * common, 0)
        g = autocorrelated(generator, shape) + common
        g[..., 0] += effect * a[..., 0]
        # The decoder is orthonormal, so this gradient's g along d_j is g_j.
        gradient = -torch.from_numpy(g).float() @ rows
        activations = SparseActivations(torch.from_numpy(a).float(), torch.arange(features).expand(shape))
        collected.add(LayerRow(torch.ones(shape[:2], dtype=torch.bool), activations, {"nll": gradient}))
        all_a.append(a.reshape(-1, features))
        all_g.append(g.reshape(-1, features))
    columns = collected.columns("nll")
    a, g = np.concatenate(all_a), np.concatenate(all_g)
    return {
        "z": columns["sum_s"] / np.sqrt(columns["sum_s2"]),
        "z_null": columns["null_s"] / np.sqrt(columns["null_s2"]),
        "correlation": np.array([np.corrcoef(a[:, j], g[:, j])[0, 1] for j in range(features)]),
    }


def test_an_effect_inside_contexts_is_found_and_its_control_is_clean() -> None:
    """A planted effect gives z far above 10; the control of the same feature stays near 0, as do the others."""
    for sign in (1, -1):
        found = simulate(n_rows=40, seed=1, effect=sign * 1.0)
        assert sign * found["z"][0] > 10
        assert abs(found["z_null"][0]) < 3
        assert np.abs(found["z"][1:]).max() < 4.5


@pytest.mark.parametrize(("levels", "drift"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_levels_and_drift_alone_are_not_an_effect(levels: float, drift: float) -> None:
    """Levels of documents and drift with position, in a and g alike, correlate plainly, yet z stays in its bounds.

    At 5 % it rejects 2 to 7 % of features (fewer under drift, as a row's contexts then balance each other), at
    0.1 % no more than 0.3 %, and so does the negative control.
    """
    found = [simulate(n_rows=20, seed=seed, levels=levels, drift=drift) for seed in range(16)]
    correlation = np.concatenate([one["correlation"] for one in found])
    assert np.abs(correlation).mean() > 0.1  # what a naive test would see in every feature
    for name in ("z", "z_null"):
        z = np.concatenate([one[name] for one in found])
        assert abs(z.mean()) < 4 / np.sqrt(len(z))
        assert 0.02 < (np.abs(z) > 1.96).mean() < 0.07
        assert (np.abs(z) > 3.29).mean() <= 0.003
