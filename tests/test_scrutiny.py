"""The figures of benchmarks/scrutiny.py, on synthetic arrays: each against another way to get it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.ingest.statistics.directions import DecoderRows, Sizes, direction_test
from energy_lens.ingest.statistics.stream import LayerRow, LayerStatistics

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


for dependency in ("association", "null_situations", "stored_run", "tables", "synthetic", "streamed", "situations"):
    _load(dependency)
association, made = _load("association"), _load("synthetic")
arrays = _load("measured")
intervals = _load("intervals")
specific = _load("specific")
_load("scrutiny_intervals")
stored = _load("scrutiny_stored")
scrutiny = _load("scrutiny")

LANES, N_POSITIONS, D_MODEL, D_SAE, K = 6, 12, 8, 20, 3


# ------------------------------------------------------------------------------------------------ z by directions


def _random_plan(n_rows: int, seed: int) -> tuple[object, LayerStatistics]:
    """What the script measures and what the stream keeps of the same random rows of the plan."""
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(D_SAE, D_MODEL, generator=generator)
    sae = SparseAutoencoder(0, K, decoder.T.clone(), torch.zeros(D_SAE), decoder, torch.zeros(D_MODEL))
    collected = LayerStatistics(sae, ["energy"])
    rows = []
    for _ in range(n_rows):
        included = torch.rand(LANES, N_POSITIONS, generator=generator) < 0.8
        included &= torch.arange(N_POSITIONS) < torch.randint(5, N_POSITIONS + 1, (LANES, 1), generator=generator)
        values = torch.rand(LANES, N_POSITIONS, K, generator=generator) * included[..., None]
        indices = torch.rand(LANES, N_POSITIONS, D_SAE, generator=generator).topk(K).indices
        gradients = torch.randn(LANES, N_POSITIONS, D_MODEL, generator=generator) * included[..., None]
        collected.add(LayerRow(included, SparseActivations(values, indices), {"energy": gradients}))
        rows.append((included.numpy(), values.numpy(), indices.numpy(), gradients.numpy()))
    included, values, indices, gradients = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    documents = np.tile(np.arange(LANES), n_rows) + LANES * (np.arange(n_rows) // 3).repeat(LANES)
    contexts = association.Contexts(included, documents, documents, np.arange(n_rows).repeat(LANES))
    tokens = np.broadcast_to(np.arange(included.size).reshape(included.shape)[..., None], values.shape)
    active = values > 0
    measured = arrays.Measured(
        gradients, contexts, decoder.numpy(), indices[active], tokens[active], values[active], np.full(D_SAE, np.nan)
    )
    return measured, collected


def test_z_is_that_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """z, z_null and Σ∇̃∇̃ᵀ from sparse pairs, taken in several parts, equal those of LayerStatistics."""
    monkeypatch.setattr(arrays, "PAIRS", 37)
    measured, collected = _random_plan(n_rows=9, seed=0)
    columns = collected.columns("energy")
    s, null = (measured.s([measured.decoder], tested)[0] for tested in (measured.tested, measured.null))
    np.testing.assert_allclose(measured.z(s), columns["sum_s"] / np.sqrt(columns["sum_s2"]), atol=1e-5)
    np.testing.assert_allclose(measured.z(null), columns["null_s"] / np.sqrt(columns["null_s2"]), atol=1e-5)
    np.testing.assert_allclose(arrays.outer(measured.tested), collected.moments["energy"].centred_outer, rtol=1e-4)
    np.testing.assert_array_equal(np.bincount(measured.pairs.features, minlength=D_SAE), columns["n_contexts"])
    along = (measured.m() * measured.decoder).sum(1)
    np.testing.assert_allclose(along, columns["sum_s"], atol=1e-4)


def test_check_tells_which_z_is_stored() -> None:
    """The stored z decides which version the statistics are of; one that is of neither stops the script."""
    measured, _ = _random_plan(n_rows=9, seed=1)
    measured.stored_z = np.where(measured.enough, 0.0, np.nan)
    with pytest.raises(AssertionError, match="differs"):
        measured.check()
    for version, expected in ((3, measured.contexts.tested(measured.gradients)), (2, measured._less_mates)):
        z = measured.z(measured.s([measured.decoder], expected)[0])
        measured.stored_z = np.where(measured.enough, z, np.nan)
        measured.check()
        assert measured.version == version
        assert measured.difference < 1e-6


def test_z_by_documents_adds_contexts_up_first() -> None:
    """S of a document is the sum over its contexts, written out."""
    measured, _ = _random_plan(n_rows=9, seed=2)
    s = measured.s([measured.decoder])[0]
    z, n = arrays.z_and_clusters(s, measured.pairs, measured.contexts.documents, D_SAE)
    for feature in range(D_SAE):
        here = measured.pairs.features == feature
        of_document = measured.contexts.documents[measured.pairs.contexts[here]]
        sums = np.array([s[here][of_document == d].sum() for d in np.unique(of_document)])
        assert z[feature] == pytest.approx(sums.sum() / np.sqrt((sums**2).sum()))
        assert n[feature] == len(sums)


# ------------------------------------------------------------------------------------------------ t_specific


def test_t_specific_is_calibrated_and_finds_a_planted_direction() -> None:
    """m_j in an atypical direction, the same for all features, is no finding; a part of m_j along d_j is one."""
    generator = np.random.default_rng(0)
    n, d = 400, 48
    decoder = generator.standard_normal((n, d))
    m = generator.standard_normal((n, d)) + 3 * generator.standard_normal(d)
    covariance = np.diag(generator.uniform(0.5, 4, d))
    vectors = specific.readers(decoder, covariance)["g"]
    np.testing.assert_allclose(np.einsum("kd,de,ke->k", vectors, covariance, vectors), 1)
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    others = ~np.eye(n, dtype=bool)
    for k in (16, 64):
        variant = specific.Variant(m @ vectors.T, unit @ vectors.T, others, k)
        p = specific.specific_p(
            variant, m @ vectors.T, np.linalg.norm(m, axis=1), np.arange(n), np.random.default_rng(k)
        )
        for null in (p.true, p.null, p.any_row):
            assert 0.03 < (np.concatenate(null) < 0.05).mean() < 0.07
            assert (np.concatenate(null) < 0.001).mean() < 0.005
        planted = m + 2 * np.linalg.norm(m, axis=1, keepdims=True) * unit
        variant = specific.Variant(planted @ vectors.T, unit @ vectors.T, others, k)
        p = specific.specific_p(
            variant, m @ vectors.T, np.linalg.norm(m, axis=1), np.arange(n), np.random.default_rng(k)
        )
        assert (np.concatenate(p.true) < 0.05).mean() > 0.95


def test_references_are_candidates_and_differ() -> None:
    """k different candidates, and the null's row is none of them."""
    generator = np.random.default_rng(1)
    candidates = generator.random((30, 50)) < 0.5
    candidates[:, :10] = True
    empty = np.zeros((30, 50))
    for shared in (False, True):
        allowed = candidates if not shared else np.broadcast_to(candidates[:1], candidates.shape)
        references, other = specific.draw_references(specific.Variant(empty, empty, allowed, 8, shared), generator)
        together = np.column_stack([references, other])
        assert np.take_along_axis(allowed, together, 1).all()
        assert all(len(set(row)) == 9 for row in together.tolist())


def test_exact_is_what_finish_makes_of_the_stream() -> None:
    """t_specific, cosine and z_documents from the vectors equal those from the sums that the stream keeps."""
    measured, collected = _random_plan(n_rows=18, seed=3)
    measured.references = np.arange(2, 14)
    tested = np.flatnonzero(measured.enough)
    assert len(tested) > 10
    rows = torch.from_numpy(measured.decoder[measured.references])
    along = measured.m() @ np.column_stack([(rows / rows.norm(dim=1, keepdim=True)).T.numpy(), np.eye(D_MODEL)])
    columns = collected.columns("energy")
    compared = DecoderRows(measured.decoder, measured.references, np.eye(D_MODEL))
    sizes = Sizes(compared, columns["sum_s"], columns["sum_gc2"])
    found = direction_test(sizes, tested, along[tested])
    exact = stored.exact(measured)
    np.testing.assert_allclose(exact["t_specific"], found.t, rtol=1e-4)
    np.testing.assert_allclose(exact["cosine"], found.cosine, rtol=1e-4)
    np.testing.assert_allclose(exact["p_reference"], found.p_reference, rtol=1e-3)
    p = scrutiny.document_p(
        *(x[tested] for x in arrays.z_and_clusters(
            measured.s([measured.decoder])[0], measured.pairs, measured.contexts.documents, D_SAE
        )), 20
    )  # fmt: skip
    np.testing.assert_allclose(exact["p_documents"], p["student"])


def test_what_is_stored_is_held_against_the_vectors() -> None:
    """A stored number that is off by a tenth shows as such, and statistics of version 2 have none to hold."""
    measured, _ = _random_plan(n_rows=18, seed=4)
    measured.references = np.arange(2, 14)
    assert stored.stored(measured, np.random.default_rng(0)) is None
    exact = stored.exact(measured)
    measured.stored = {name: np.full(D_SAE, np.nan) for name in exact}
    for name, values in exact.items():
        measured.stored[name][measured.enough] = values * (1.1 if name == "cosine" else 1)
    differences = stored.stored(measured, np.random.default_rng(0))
    for name, values in differences.items():
        np.testing.assert_allclose(values[np.isfinite(values)], 0.1 if name == "cosine" else 0, atol=1e-9)


# ------------------------------------------------------------------------------------------------ S_c, documents


def test_centring_a_is_centring_it_token_by_token() -> None:
    """S_c − (Σa/n)(Σg̃) = Σ(a − ā)·g̃ over the counted tokens, and where a is constant nothing is left."""
    noise = made.Noise(drift=0.5, lengths="contexts", firing=0.5, n_documents=16, n_contexts=3, n_features=5)
    sample = made.synthetic(noise, seed=0)
    a, g, contexts = sample.a, sample.g, sample.contexts
    counted = contexts.counted()
    tested = contexts.less_mates(contexts.centred(g)) * counted[..., None]
    s = scrutiny.s_centred(a, tested, counted)
    for c in range(len(a)):
        here = a[c][counted[c]].astype(np.float64)
        np.testing.assert_allclose(s[c], ((here - here.mean(0)) * tested[c][counted[c]]).sum(0), atol=1e-4)
    assert np.abs(scrutiny.s_by_context(np.ones_like(a), tested)).max() > 1
    np.testing.assert_allclose(scrutiny.s_centred(np.ones_like(a), tested, counted), 0, atol=1e-9)


def test_only_centred_activations_hold_the_level_in_unequal_contexts() -> None:
    """Firing that goes with a context's length and drift with position: z rejects twice 5 % and more."""
    noise = made.Noise(drift=0.5, lengths="contexts", firing=0.5, n_documents=16, n_contexts=20, n_features=48)
    repetitions = [scrutiny.unequal_p(made.synthetic(noise, seed)) for seed in range(5)]
    share = {test: np.mean([np.nanmean(p[test] < 0.05) for p in repetitions]) for test in repetitions[0]}
    assert share["z, a as it is"] > 0.1
    assert share["z, a centred"] < 0.09
    assert share["z of the stream"] == pytest.approx(share["z, a centred"], abs=0.005)


def test_student_is_the_t_test_of_the_documents() -> None:
    """z by documents turned into t equals scipy's one-sample test of the S_d."""
    from scipy import stats

    sums = np.random.default_rng(0).standard_normal((14, 6)) + 0.4
    z = sums.sum(0) / np.sqrt((sums**2).sum(0))
    p = scrutiny.document_p(z, np.full(6, 14), 20)
    np.testing.assert_allclose(p["student"], stats.ttest_1samp(sums, 0).pvalue)
    assert ((p["student"] < p["active"]) == (np.abs(z) > 1)).all()
    assert np.isnan(scrutiny.document_p(z, np.full(6, 9), 20)["student"]).all()


# ------------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize("r", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("unequal", [False, True])
def test_influence_is_the_jackknife(r: float, unequal: bool) -> None:
    """The standard error of r by influence is within a few percent of that by leaving out a document at a time."""
    documents = intervals.Documents(r, 40, unequal, slopes=0.3)
    sums = intervals.simulate(documents, 40, np.random.default_rng(0))
    result = intervals.intervals(sums)
    ratio = result.half_widths["influence"] / result.half_widths["jackknife"]
    assert np.median(ratio) == pytest.approx(1, abs=0.08 if unequal else 0.04)
    one = intervals.Sums(*(x[0] for x in sums))
    left_out = [intervals.correlation(intervals.Sums(*(np.delete(x, d) for x in one))) for d in range(40)]
    error = np.sqrt(39 / 40 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert intervals.jackknife_error(one) == pytest.approx(error)


def test_simulated_documents_have_their_correlation() -> None:
    """r over very many documents is the one asked for, and effective documents are a third of equal ones."""
    for r in (0.0, 0.5, 0.95):
        sums = intervals.simulate(intervals.Documents(r, 40, unequal=True, slopes=0.3), 400, np.random.default_rng(1))
        assert intervals.correlation(intervals.Sums(*(x.reshape(-1) for x in sums))) == pytest.approx(r, abs=0.02)
    equal = intervals.intervals(intervals.simulate(intervals.Documents(0.0, 40), 200, np.random.default_rng(2)))
    assert np.median(equal.effective) == pytest.approx(40 / 3, rel=0.15)
    assert 0.9 < (np.abs(equal.r) <= equal.half_widths["influence"]).mean() < 0.98
