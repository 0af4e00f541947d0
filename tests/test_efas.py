"""EFAS, its intervals and its test, against scipy and loops over densified rows; and the views over them.

References start from the stored rows (activations, gradient vectors, plan) and the SAE's own decoder. They share no
code with what they check.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from energy_lens.ingest.energies.forward import run_forward
from energy_lens.ingest.energies.nll import NegativeLogLikelihood
from energy_lens.ingest.model.loading import DEFAULT_MODEL, load_model
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.sae.choosing import sae_folders, shipped_folder
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.ingest.statistics.finish import finish
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.runs import make_current

Floats = NDArray[np.float64]

ENERGIES = ("nll", "logit_lens", "tuned_lens", "attention", "hopfield")
LAYERS = (1, 2)
KINDS = [(energy, gradient) for energy in ENERGIES for gradient in ("decoder", "discrete")]

SHIPPED = shipped_folder(DEFAULT_MODEL, 10).parent
real = pytest.mark.skipif(not SHIPPED.exists(), reason="no SAEs are shipped yet")


# ------------------------------------------------------------------------------------------------ stored rows


@dataclass
class Layer:
    """One layer's included tokens, densified to float64; the first axis is the token."""

    token_ids: NDArray[np.int64]
    contexts: NDArray[np.int64]
    documents: NDArray[np.int64]
    categories: NDArray[np.object_]
    halves: NDArray[np.object_]
    a: Floats  #: [token, feature]
    vectors: dict[str, Floats]  #: energy: ∂E/∂x [token, d_model]
    discrete: dict[str, Floats]  #: energy: [token], NaN where undefined
    decoder: Floats  #: [feature, d_model]

    def g(self, energy: str, gradient: str, feature: int) -> Floats:
        """The gradient that goes with a feature's activation [token]; NaN where there is none."""
        return self.discrete[energy] if gradient == "discrete" else -self.vectors[energy] @ self.decoder[feature]

    def cells(self) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
        """(category, half, tokens) of every combination that has statistics."""
        yield "all", "AB", np.ones(len(self.token_ids), dtype=bool)
        for category in sorted(set(self.categories)):
            yield category, "AB", self.categories == category
        for half in sorted(set(self.halves)):
            yield "all", half, self.halves == half


def decoder_rows(folder: Path) -> Floats:
    """W_dec of an SAE folder, straight from its weights."""
    from safetensors.torch import load_file

    rows: Floats = load_file(folder / "sae_weights.safetensors")["W_dec"].double().numpy()
    return rows


def read_layer(warehouse: Warehouse, layer: int, decoder: Floats) -> Layer:
    """The current run's stored rows of a layer."""
    run = int(warehouse.sql("SELECT run_id FROM runs WHERE is_current").value())
    rows = warehouse.sql(
        """
        SELECT l.token_id, c.context_id, d.document_id, d.category, d.half
        FROM token_layers AS l, contexts AS c, documents AS d, runs AS r
        WHERE l.run_id = $run AND l.layer = $layer AND l.included AND r.run_id = $run
            AND c.run_id = $run AND c.context_id * r.context_length <= l.token_id
            AND l.token_id < c.context_id * r.context_length + c.n_tokens
            AND d.run_id = $run AND d.document_id = c.document_id
        ORDER BY l.token_id
        """,
        run=run, layer=layer,
    ).numpy()  # fmt: skip
    token_ids = np.asarray(rows["token_id"])
    active = warehouse.sql(
        "SELECT token_id, feature, activation FROM activations WHERE run_id = $run AND layer = $layer",
        run=run, layer=layer,
    ).numpy()  # fmt: skip
    a = np.zeros((len(token_ids), len(decoder)))
    places = np.searchsorted(token_ids, active["token_id"])
    assert np.array_equal(token_ids[places], active["token_id"])  # active at included tokens only
    a[places, active["feature"]] = active["activation"]
    vectors, discrete = {}, {}
    for energy in ENERGIES:
        stored = warehouse.sql(
            """
            SELECT token_id, discrete, vector FROM gradients
            WHERE run_id = $run AND layer = $layer AND energy = $energy ORDER BY token_id
            """,
            run=run, layer=layer, energy=energy,
        ).numpy()  # fmt: skip
        assert np.array_equal(stored["token_id"], token_ids)
        vectors[energy] = np.stack(list(stored["vector"])).astype(np.float64)
        discrete[energy] = np.ma.filled(np.ma.asarray(stored["discrete"]).astype(np.float64), np.nan)
    return Layer(
        token_ids, rows["context_id"], rows["document_id"], rows["category"].astype(object),
        rows["half"].astype(object), a, vectors, discrete, decoder,
    )  # fmt: skip


def efas_rows(
    warehouse: Warehouse, layer: int, energy: str, gradient: str
) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(category, half, feature): the row of `efas` or `efas_halves`."""
    found = {}
    for view, half in (("efas", "'AB'"), ("efas_halves", "half")):
        result = warehouse.sql(
            f"""
            SELECT *, {half} AS half_of FROM {view}
            WHERE layer = $layer AND energy = $energy AND gradient = $gradient
            """,
            layer=layer, energy=energy, gradient=gradient,
        )  # fmt: skip
        names = result.columns
        for values in result.fetchall():
            row = dict(zip(names, values, strict=True))
            key = (row["category"], row["half_of"], row["feature"])
            assert key not in found
            found[key] = row
    return found


@pytest.fixture(scope="module")
def layers(tiny_warehouse: Path, tiny: Callable[..., Any]) -> dict[int, Layer]:
    """The tiny warehouse's rows, by layer."""
    with Warehouse(tiny_warehouse) as warehouse:
        return {
            layer: read_layer(warehouse, layer, decoder_rows(tiny("llama").saes / f"layer_{layer}")) for layer in LAYERS
        }


@pytest.fixture
def warehouse(tiny_warehouse: Path) -> Iterator[Warehouse]:
    with Warehouse(tiny_warehouse) as opened:
        yield opened


def pearson(x: Floats, y: Floats) -> float | None:
    """scipy's correlation; None where there is none."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.pearsonr(x, y).statistic)


def assert_close(found: float | None, expected: float | None, tolerance: float, what: object = "") -> None:
    """Equal within an absolute tolerance, NULL where NULL is expected."""
    assert (found is None) == (expected is None), what
    if found is not None and expected is not None:
        assert abs(found - expected) <= tolerance, what


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize(("energy", "gradient"), KINDS)
def test_scores_equal_scipy(energy: str, gradient: str, warehouse: Warehouse, layers: dict[int, Layer]) -> None:
    """Score and active score of every feature, category and half equal pearsonr over densified tokens to 1e-6."""
    for layer, stored in layers.items():
        found = efas_rows(warehouse, layer, energy, gradient)
        assert len({half for _, half, _ in found}) == 3
        for category, half, tokens in stored.cells():
            for feature in range(len(stored.decoder)):
                g = stored.g(energy, gradient, feature)
                used = tokens & ~np.isnan(g)
                a, g = stored.a[used, feature], g[used]
                row = found[category, half, feature]
                what = (layer, category, half, feature)
                assert row["n_tokens"] == len(a), what
                assert row["n_active"] == (a > 0).sum(), what
                assert row["n_documents"] == len(set(stored.documents[used])), what
                assert_close(row["score"], pearson(a, g), 1e-6, what)
                assert_close(row["score_active"], pearson(a[a > 0], g[a > 0]), 1e-6, what)


def influences(
    stored: Layer, energy: str, gradient: str, feature: int, tokens: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """I_d by the definition, with V_g,d exact, and as it is stored: [document] each, one document after the other."""
    a, g, documents = stored.a[tokens, feature], stored.g(energy, gradient, feature)[tokens], stored.documents[tokens]
    contexts, norm2 = stored.contexts[tokens], (stored.vectors[energy][tokens] ** 2).sum(1)
    n = len(a)
    da, dg = a - a.mean(), g - g.mean()
    r = (da * dg).mean() / (a.std() * g.std())
    fires = np.isin(contexts, contexts[a > 0]) | (gradient == "discrete")
    rest, weight = (g[~fires] ** 2).sum(), norm2[~fires].sum()
    found = []
    for document in sorted(set(documents)):
        own = documents == document
        u, v_a = (da * dg)[own].sum() / n, (da**2)[own].sum() / n
        square = (g[own & fires] ** 2).sum() + (rest * norm2[own & ~fires].sum() / weight if weight else 0)
        spread = (square - 2 * g.mean() * g[own].sum() + own.sum() * g.mean() ** 2) / n
        found.append(
            [
                u / (a.std() * g.std()) - r / 2 * (v_a / a.var() + v_g / g.var())
                for v_g in ((dg**2)[own].sum() / n, spread)
            ]
        )
    exact, spread_out = np.array(found).T
    return exact, spread_out


@pytest.mark.parametrize(("energy", "gradient"), KINDS)
def test_intervals_equal_loops_over_documents(
    energy: str, gradient: str, warehouse: Warehouse, layers: dict[int, Layer]
) -> None:
    """ci_low and ci_high follow from each document's influence on the correlation, those of attribution from its share.

    NULL below 10 documents, and where few hold most of the tokens. What is not kept of g² by document (that of contexts
    where the feature is silent) changes the width little.
    """
    widths = []
    for layer, stored in layers.items():
        found = efas_rows(warehouse, layer, energy, gradient)
        for category, half, tokens in stored.cells():
            for feature in range(0, len(stored.decoder), 7):
                row = found[category, half, feature]
                every_g = stored.g(energy, gradient, feature)
                used = tokens & ~np.isnan(every_g)
                a, g, documents = stored.a[used, feature], every_g[used], stored.documents[used]
                n_documents = len(set(documents))
                if gradient == "discrete":
                    assert row["attribution"] is row["attribution_low"] is row["attribution_high"] is None
                    assert row["q_attribution"] is row["role"] is None
                else:
                    assert_close(row["attribution"], float((a * g).sum()), 1e-6 * float(np.abs(a * g).sum()))
                sizes = np.unique(documents, return_counts=True)[1]
                if n_documents < 10 or sizes.sum() ** 2 < 5 * (sizes**2).sum():
                    for name in ("ci_low", "ci_high", "attribution_low", "attribution_high", "q_attribution", "role"):
                        assert row[name] is None
                    continue
                small_sample = n_documents / (n_documents - 1)
                margins = []
                for i_d in influences(stored, energy, gradient, feature, used):
                    freedom = (i_d**2).sum() ** 2 / (i_d**4).sum()
                    error = math.sqrt((i_d**2).sum() * small_sample)
                    margins.append(stats.t.ppf(0.975, freedom) * error / (1 - row["score"] ** 2))
                    assert abs(i_d.sum()) < 1e-9
                assert -1 <= row["ci_low"] <= row["score"] <= row["ci_high"] <= 1
                for name, side in (("ci_low", -1), ("ci_high", 1)):
                    expected = math.tanh(math.atanh(row["score"]) + side * margins[1])
                    assert_close(row[name], expected, 1e-5, (layer, category, half, feature))
                widths.append(margins[1] / margins[0])
                if gradient == "decoder":
                    sums = [float((a * g)[documents == document].sum()) for document in sorted(set(documents))]
                    mean = sum(sums) / n_documents
                    quantile = stats.t.ppf(0.975, n_documents - 1)
                    margin = quantile * math.sqrt(sum((v - mean) ** 2 for v in sums) * small_sample)
                    low, high = sum(sums) - margin, sum(sums) + margin
                    assert_close(row["attribution_low"], low, 1e-6 * (abs(low) + margin))
                    assert_close(row["attribution_high"], high, 1e-6 * (abs(high) + margin))
    assert 0.98 < np.median(widths) < 1.02
    low, high = np.quantile(widths, [0.05, 0.95])
    assert 0.8 < low <= high < 1.25, (low, high)


def test_roles_come_from_a_false_discovery_rate(warehouse: Warehouse, layers: dict[int, Layer]) -> None:
    """q_attribution is Benjamini–Hochberg over the features' t tests across documents; role where it is below 0.05."""
    roles = set()
    for layer, stored in layers.items():
        found = efas_rows(warehouse, layer, "hopfield", "decoder")
        features = [j for j in range(len(stored.decoder)) if (stored.a[:, j] > 0).any()]
        p = []
        for j in features:
            share = stored.a[:, j] * stored.g("hopfield", "decoder", j)
            p.append(stats.ttest_1samp([share[stored.documents == d].sum() for d in set(stored.documents)], 0).pvalue)
        for j, q in zip(features, stats.false_discovery_control(p), strict=True):
            row = found["all", "AB", j]
            assert_close(row["q_attribution"], q, 1e-5)
            assert row["role"] == (("supports" if row["attribution"] > 0 else "opposes") if q < 0.05 else None)
            roles.add(row["role"])
    assert "supports" in roles


def plan_rows(warehouse: Warehouse) -> list[tuple[str, str, list[int]]]:
    """(category, half, contexts in lane order) of every row of the plan, its groups committed."""
    cells = warehouse.sql(
        """
        SELECT g.group_id, p.row, g.category, g.half, list(p.context_id ORDER BY p.lane)
        FROM plan AS p, plan_groups AS g
        WHERE p.run_id = g.run_id AND p.group_id = g.group_id AND g.committed_at IS NOT NULL
            AND p.run_id = (SELECT run_id FROM runs WHERE is_current)
        GROUP BY ALL ORDER BY g.group_id, p.row
        """
    ).fetchall()
    return [(category, half, contexts) for _, _, category, half, contexts in cells]


@dataclass
class Test:
    """The within-context test of one layer and energy, from stored rows; [row's contexts..., feature]."""

    __test__ = False

    cells: list[tuple[str, str]]  #: category and half of each context
    documents: list[int]
    s: Floats  #: S_c
    null: Floats
    n_counted: Floats  #: active counted tokens of each context
    a2: Floats  #: Σã²
    g2: Floats  #: Σg̃²


def within_context_test(
    stored: Layer, energy: str, plan: list[tuple[str, str, list[int]]], length: int, gradient: str = "decoder"
) -> Test:
    """S_c and its control for every context, from stored gradients, activations and the plan."""
    n_features = len(stored.decoder)
    cells, documents = [], []
    s, null, n_counted, a2, g2 = [], [], [], [], []
    for category, half, contexts in plan:
        g = np.full((len(contexts), length, n_features), np.nan)
        a = np.zeros(g.shape)
        for lane, context in enumerate(contexts):
            own = np.flatnonzero(stored.contexts == context)
            positions = stored.token_ids[own] - context * length
            if gradient == "decoder":
                g[lane, positions] = -stored.vectors[energy][own] @ stored.decoder.T
            else:
                g[lane, positions] = stored.discrete[energy][own, None]
            g[lane] -= np.nanmean(g[lane], axis=0)
            a[lane, positions] = stored.a[own]
            cells.append((category, half))
            documents.append(int(stored.documents[own[0]]))
        present = ~np.isnan(g[..., 0])
        for lane in range(len(contexts)):
            following = (lane + 1) % len(contexts)
            own_g, other_g = np.zeros((2, length, n_features))
            counted, null_counted = np.zeros((2, length), dtype=bool)
            for t in np.flatnonzero(present[lane]):
                mates = [m for m in range(len(contexts)) if m != lane and present[m, t]]
                if len(mates) >= 3:
                    counted[t] = True
                    own_g[t] = g[lane, t] - g[mates, t].mean(0)
                    if present[following, t]:
                        rest = [m for m in mates if m != following]
                        other_g[t] = g[following, t] - g[rest, t].mean(0)
                        null_counted[t] = True
            for centred_g, where in ((own_g, counted), (other_g, null_counted)):
                if where.any():
                    centred_g[where] -= centred_g[where].mean(0)
            own_a = a[lane]
            s.append((own_a * own_g).sum(0))
            null.append((own_a * other_g).sum(0))
            n_counted.append((own_a[counted] > 0).sum(0))
            g2.append((own_g**2).sum(0))
            centred = own_a[counted] - own_a[counted].mean(0) if counted.any() else own_a[counted]
            a2.append((centred**2).sum(0))
    return Test(cells, documents, *map(np.array, (s, null, n_counted, a2, g2)))


def directions_by_definition(
    stored: Layer, energy: str, plan: list[tuple[str, str, list[int]]], length: int, chosen: tuple[str, str]
) -> tuple[Floats, Floats]:
    """m_j = −Σa·∇̃ [feature, d_model] and C = Σ∇̃∇̃ᵀ over a cell's rows of the plan, token by token."""
    n_features, d_model = stored.decoder.shape
    m, outer = np.zeros((n_features, d_model)), np.zeros((d_model, d_model))
    for category, half, contexts in plan:
        if chosen[0] not in ("all", category) or chosen[1] not in ("AB", half):
            continue
        centred = np.full((len(contexts), length, d_model), np.nan)
        a = np.zeros((len(contexts), length, n_features))
        for lane, context in enumerate(contexts):
            own = np.flatnonzero(stored.contexts == context)
            positions = stored.token_ids[own] - context * length
            centred[lane, positions] = stored.vectors[energy][own] - stored.vectors[energy][own].mean(0)
            a[lane, positions] = stored.a[own]
        present = ~np.isnan(centred[..., 0])
        for lane in range(len(contexts)):
            tested, own_a = [], []
            for t in np.flatnonzero(present[lane]):
                mates = [mate for mate in range(len(contexts)) if mate != lane and present[mate, t]]
                if len(mates) >= 3:
                    tested.append(centred[lane, t] - centred[mates, t].mean(0))
                    own_a.append(a[lane, t])
            if tested:
                vectors = np.array(tested) - np.mean(tested, axis=0)
                m -= np.array(own_a).T @ vectors
                outer += vectors.T @ vectors
    return m, outer


@pytest.mark.parametrize("energy", ENERGIES)
def test_the_test_of_the_direction_follows_its_definition(
    energy: str, warehouse: Warehouse, layers: dict[int, Layer]
) -> None:
    """t_specific, its p and q, the control and the cosine of every feature, from stored vectors and loops alone.

    Sums along the shared directions are stored in six bits, hence the tolerance of some hundredths.
    """
    plan = plan_rows(warehouse)
    for layer, stored in layers.items():
        found = efas_rows(warehouse, layer, energy, "decoder")
        references = np.array(
            [j for (j,) in warehouse.sql("SELECT feature FROM reference_rows WHERE layer = $l", l=layer).fetchall()]
        )
        assert len(set(references)) == len(references) == 64
        for category, half, _ in stored.cells():
            m, outer = directions_by_definition(stored, energy, plan, 32, (category, half))
            sizes = m @ stored.decoder.T / np.sqrt(np.einsum("kd,de,ke->k", stored.decoder, outer, stored.decoder))
            cosine = (m * stored.decoder).sum(1) / np.linalg.norm(m, axis=1) / np.linalg.norm(stored.decoder, axis=1)
            n_tested = 0
            for j in range(len(stored.decoder)):
                row = found[category, half, j]
                if row["z"] is None:
                    assert row["t_specific"] is row["p_specific"] is row["q_specific"] is row["cosine"] is None
                    continue
                others = references[references != j]
                t = sizes[j, j] / np.sqrt((sizes[j, others] ** 2).mean())
                assert row["t_specific"] == pytest.approx(t, rel=0.02)
                assert row["p_specific"] == pytest.approx(2 * stats.t.sf(abs(row["t_specific"]), len(others)), rel=1e-4)
                assert row["cosine"] == pytest.approx(cosine[j], rel=0.03)
                place = j % 64
                stand_in = references[place] if references[place] != j else references[(place + 1) % 64]
                rest = others[others != stand_in]
                t_reference = sizes[j, stand_in] / np.sqrt((sizes[j, rest] ** 2).mean())
                assert row["p_reference"] == pytest.approx(2 * stats.t.sf(abs(t_reference), len(rest)), abs=0.1)
                n_tested += 1
            p = [row["p_specific"] for (c, h, _), row in found.items() if (c, h) == (category, half) and row["z"]]
            q = [row["q_specific"] for (c, h, _), row in found.items() if (c, h) == (category, half) and row["z"]]
            assert len(p) == n_tested
            if p:
                np.testing.assert_allclose(q, stats.false_discovery_control(p), rtol=1e-5)


def assert_test_equals(
    found: dict[tuple[str, str, int], dict[str, Any]], expected: Test, category: str, half: str
) -> None:
    """z, its control, p, q and the within-context score of one cell against the reference."""
    own = np.array([category in ("all", c) and half in ("AB", h) for c, h in expected.cells])
    documents = np.array(expected.documents)
    s, null = expected.s[own], expected.null[own]
    n_counted = expected.n_counted[own]
    z, z_null = s.sum(0) / np.sqrt((s**2).sum(0)), null.sum(0) / np.sqrt((null**2).sum(0))
    within = s.sum(0) / np.sqrt(expected.a2[own].sum(0) * expected.g2[own].sum(0))
    by_document = np.array([s[documents[own] == d].sum(0) for d in sorted(set(documents[own]))])
    testable = np.array(
        [
            n_counted[:, j].sum() >= 50
            and (n_counted[:, j] > 0).sum() >= 10
            and len(set(documents[own][n_counted[:, j] > 0])) >= 5
            for j in range(s.shape[1])
        ]
    )
    p = 2 * stats.norm.sf(np.abs(z))
    q = np.full(len(p), np.nan)
    q[testable] = stats.false_discovery_control(p[testable])
    for feature in range(s.shape[1]):
        row = found[category, half, feature]
        what = (category, half, feature)
        assert_close(row["score_within"], float(within[feature]), 1e-6, what)
        if testable[feature]:
            assert_close(row["z"], float(z[feature]), 1e-5, what)
            assert_close(row["z_null"], float(z_null[feature]), 1e-5, what)
            # p and q of the very z that is stored, and of the reference's.
            assert row["p_value"] == pytest.approx(2 * stats.norm.sf(abs(row["z"])), rel=1e-10)
            assert_close(row["p_value"], float(p[feature]), 1e-5, what)
            assert_close(row["q_value"], float(q[feature]), 1e-5, what)
            sums = by_document[by_document[:, feature] != 0, feature]
            if len(sums) >= 10:
                assert_close(row["z_documents"], float(sums.sum() / np.sqrt((sums**2).sum())), 1e-5, what)
                assert_close(row["p_documents"], float(stats.ttest_1samp(sums, 0).pvalue), 1e-5, what)
            else:
                assert row["z_documents"] is row["p_documents"] is row["q_documents"] is None, what
        else:
            assert row["z"] is row["z_null"] is row["p_value"] is row["q_value"] is None, what
    stored_p = [found[category, half, j]["p_value"] for j in np.flatnonzero(testable)]
    stored_q = [found[category, half, j]["q_value"] for j in np.flatnonzero(testable)]
    np.testing.assert_allclose(stored_q, stats.false_discovery_control(stored_p), rtol=1e-10)


@pytest.mark.parametrize(("energy", "gradient"), KINDS)
def test_the_within_context_test_equals_a_reference_from_the_tables(
    energy: str, gradient: str, warehouse: Warehouse, layers: dict[int, Layer]
) -> None:
    """z, z_null, p, q and score_within of every feature, category and half, from gradients, plan and loops alone."""
    plan = plan_rows(warehouse)
    for layer, stored in layers.items():
        expected = within_context_test(stored, energy, plan, 32, gradient)
        found = efas_rows(warehouse, layer, energy, gradient)
        for category, half, _ in stored.cells():
            assert_test_equals(found, expected, category, half)
        if gradient == "discrete":
            continue
        # What the stream counted is what a reader of token_layers would count.
        counted = warehouse.sql(
            """
            SELECT count(*) FROM activations AS a JOIN token_layers AS l USING (run_id, token_id, layer)
            WHERE l.counted AND layer = $layer
            """,
            layer=layer,
        ).value()
        assert counted == expected.n_counted.sum()


def test_centred_activation_sums(warehouse: Warehouse, layers: dict[int, Layer]) -> None:
    """sum_ac2 is Σ(a − mean over the context's counted tokens)², by loops, to 1e-10."""
    plan = plan_rows(warehouse)
    for layer, stored in layers.items():
        expected = within_context_test(stored, "nll", plan, length=32)
        for category, half, _ in stored.cells():
            own = [category in ("all", c) and half in ("AB", h) for c, h in expected.cells]
            found = warehouse.sql(
                """
                SELECT sum_ac2, n_counted, n_counted_contexts FROM feature_statistics
                WHERE layer = $layer AND energy = 'nll' AND gradient = 'decoder' AND category = $category
                    AND half = $half
                ORDER BY feature
                """,
                layer=layer, category=category, half=half,
            ).numpy()  # fmt: skip
            np.testing.assert_allclose(found["sum_ac2"], expected.a2[own].sum(0), rtol=1e-10)
            np.testing.assert_array_equal(found["n_counted"], expected.n_counted[own].sum(0))
            np.testing.assert_array_equal(found["n_counted_contexts"], (expected.n_counted[own] > 0).sum(0))


def test_too_little_to_test_is_null(tiny_warehouse: Path, tiny: Callable[..., Any], tmp_path: Path) -> None:
    """50 active counted tokens, 10 contexts and 5 documents are needed each; q ranks only what is tested."""
    db = tmp_path / "edited.duckdb"
    shutil.copy(tiny_warehouse, db)
    decoders = {sae.layer: sae.W_dec for sae in map(load_sae, sae_folders(tiny("llama").saes))}
    with Warehouse(db, writable=True) as warehouse:
        first = "group_id = (SELECT min(group_id) FROM plan_groups)"
        # Feature: (its counted tokens, contexts) over all groups, and the documents in which it stays active.
        wanted = {0: (49, 40, 16), 1: (50, 40, 16), 2: (60, 9, 16), 3: (60, 10, 16), 4: (60, 10, 4), 5: (60, 10, 5)}
        for feature, (n_counted, n_contexts, n_documents) in wanted.items():
            warehouse.sql(
                f"""
                UPDATE feature_moments SET n_counted = CASE WHEN {first} THEN $counted ELSE 0 END,
                    n_contexts = CASE WHEN {first} THEN $contexts ELSE 0 END
                WHERE feature = $feature AND layer = 1
                """,
                feature=feature, counted=n_counted, contexts=n_contexts,
            )  # fmt: skip
            warehouse.sql(
                """
                DELETE FROM activations USING contexts AS c WHERE c.context_id = activations.token_id // 32
                    AND c.document_id >= $n_documents AND feature = $feature AND layer = 1
                """,
                feature=feature, n_documents=n_documents,
            )  # fmt: skip
    finish(lambda: Warehouse(db, writable=True), 1, decoders)
    with Warehouse(db) as warehouse:
        for energy in ENERGIES:
            rows = efas_rows(warehouse, 1, energy, "decoder")
            for feature in wanted:
                row = rows["all", "AB", feature]
                tested = feature in (1, 3, 5)
                for name in ("z", "z_null", "p_value", "q_value"):
                    assert (row[name] is not None) == tested, (feature, name)
                assert row["score"] is not None
            tested = [
                row for (category, half, _), row in rows.items() if (category, half) == ("all", "AB") and row["z"]
            ]
            assert len(tested) == 61
            expected = stats.false_discovery_control([row["p_value"] for row in tested])
            np.testing.assert_allclose([row["q_value"] for row in tested], expected, rtol=1e-10)


@pytest.mark.parametrize("n_documents", [9, 10])
def test_an_interval_needs_ten_documents(
    n_documents: int, tiny_warehouse: Path, tiny: Callable[..., Any], layers: dict[int, Layer], tmp_path: Path
) -> None:
    """Ten documents with included tokens have intervals, nine have none; documents without any do not weigh in."""
    db = tmp_path / "edited.duckdb"
    shutil.copy(tiny_warehouse, db)
    decoders = {sae.layer: sae.W_dec for sae in map(load_sae, sae_folders(tiny("llama").saes))}
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("DELETE FROM document_gradients WHERE document_id >= $n", n=n_documents)
        for table in ("activations", "gradients"):
            warehouse.sql(
                f"""
                DELETE FROM {table} USING contexts AS c
                WHERE c.context_id = {table}.token_id // 32 AND c.document_id >= $n
                """,
                n=n_documents,
            )
    finish(lambda: Warehouse(db, writable=True), 1, decoders)
    stored = layers[2]
    kept = stored.documents < n_documents
    with Warehouse(db) as warehouse:
        for gradient in ("decoder", "discrete"):
            for (category, half, feature), row in efas_rows(warehouse, 2, "nll", gradient).items():
                if (category, half) == ("all", "AB"):
                    assert row["n_documents"] == n_documents
                    assert (row["ci_low"] is None) == (row["ci_high"] is None) == (n_documents < 10)
                if (category, half, gradient, n_documents) == ("all", "AB", "decoder", 10):
                    products = stored.a[kept, feature] * stored.g("nll", "decoder", feature)[kept]
                    sums = np.array([products[stored.documents[kept] == document].sum() for document in range(10)])
                    margin = stats.t.ppf(0.975, 9) * math.sqrt(10) * sums.std(ddof=1)
                    assert row["attribution_low"] == pytest.approx(sums.sum() - margin, rel=1e-5, abs=1e-5 * margin)


def test_tokens_without_a_discrete_gradient_do_not_count(
    tiny_warehouse: Path, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """Where the derivative along the text is NULL, neither token nor activation nor document enters its statistics."""
    db = tmp_path / "edited.duckdb"
    shutil.copy(tiny_warehouse, db)
    decoders = {sae.layer: sae.W_dec for sae in map(load_sae, sae_folders(tiny("llama").saes))}
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql(
            """
            UPDATE gradients SET discrete = NULL FROM contexts AS c
            WHERE c.context_id = gradients.token_id // 32 AND (c.document_id = 3 OR gradients.token_id % 5 = 0)
            """
        )
    finish(lambda: Warehouse(db, writable=True), 1, decoders)
    with Warehouse(db) as warehouse:
        stored = read_layer(warehouse, 2, decoder_rows(tiny("llama").saes / "layer_2"))
        for energy in ENERGIES:
            found = efas_rows(warehouse, 2, energy, "discrete")
            for feature in range(0, 64, 5):
                used = ~np.isnan(stored.discrete[energy])
                a, g = stored.a[used, feature], stored.discrete[energy][used]
                row = found["all", "AB", feature]
                assert (row["n_tokens"], row["n_active"], row["n_documents"]) == (len(a), (a > 0).sum(), 15)
                assert_close(row["score"], pearson(a, g), 1e-6, feature)
                assert_close(row["score_active"], pearson(a[a > 0], g[a > 0]), 1e-6, feature)


# ------------------------------------------------------------------------------------------------ stored rows agree


def test_stored_gradients_agree_with_each_other(warehouse: Warehouse, layers: dict[int, Layer]) -> None:
    """g at an activation is −⟨vector, decoder row⟩, norm is the vector's, document sums are sums of vectors."""
    for layer, stored in layers.items():
        for energy in ENERGIES:
            rows = warehouse.sql(
                f"SELECT token_id, feature, g_{energy} AS g FROM activations WHERE layer = $layer", layer=layer
            ).numpy()
            places = np.searchsorted(stored.token_ids, rows["token_id"])
            g = -stored.vectors[energy] @ stored.decoder.T
            np.testing.assert_allclose(rows["g"], g[places, rows["feature"]], rtol=1e-5, atol=1e-5 * np.abs(g).max())
            norms = warehouse.sql(
                "SELECT norm FROM gradients WHERE layer = $layer AND energy = $energy ORDER BY token_id",
                layer=layer, energy=energy,
            ).numpy()  # fmt: skip
            np.testing.assert_allclose(norms["norm"], np.linalg.norm(stored.vectors[energy], axis=1), rtol=1e-6)
            sums = warehouse.sql(
                """
                SELECT document_id, sum(n_tokens)::INTEGER AS n, list(gradient_sum) AS parts FROM document_gradients
                WHERE layer = $layer AND energy = $energy GROUP BY document_id
                """,
                layer=layer, energy=energy,
            ).fetchall()  # fmt: skip
            assert {document for document, _, _ in sums} == set(stored.documents)
            for document, n, parts in sums:
                own = stored.vectors[energy][stored.documents == document]
                assert n == len(own)
                np.testing.assert_allclose(np.sum(parts, axis=0), own.sum(0), rtol=1e-10, atol=1e-10)


def test_stored_energies_are_the_models_own(
    warehouse: Warehouse, layers: dict[int, Layer], tiny: Callable[..., Any]
) -> None:
    """NLL of every token but a context's last equals the model's loss; hopfield is −½Σa² at included tokens."""
    model = tiny("llama").load()
    contexts = warehouse.sql(
        "SELECT token_id // 32, list(vocabulary_id ORDER BY token_id) FROM tokens GROUP BY 1 ORDER BY 1"
    ).fetchall()
    found = warehouse.sql("SELECT token_id, layer, value FROM energies WHERE energy = 'nll' ORDER BY token_id").numpy()
    assert np.ma.asarray(found["layer"]).mask.all()
    expected_ids, expected = [], []
    for context, ids in contexts:
        tokens = torch.tensor(ids)
        with torch.no_grad():
            logits = model.module(input_ids=tokens[None], use_cache=False).logits[0, :-1].double()
        expected.append(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none").numpy())
        expected_ids.append(context * 32 + np.arange(len(ids) - 1))
    np.testing.assert_array_equal(found["token_id"], np.concatenate(expected_ids))
    np.testing.assert_allclose(found["value"], np.concatenate(expected), rtol=1e-5, atol=1e-5)
    for layer, stored in layers.items():
        found = warehouse.sql(
            "SELECT token_id, value FROM energies WHERE energy = 'hopfield' AND layer = $layer ORDER BY token_id",
            layer=layer,
        ).numpy()
        np.testing.assert_array_equal(found["token_id"], stored.token_ids)
        np.testing.assert_allclose(found["value"], -(stored.a**2).sum(1) / 2, rtol=1e-6)


def test_stored_activations_are_the_encoders(
    warehouse: Warehouse, layers: dict[int, Layer], tiny: Callable[..., Any]
) -> None:
    """Activations are those of Hugging Face's hidden_states[layer + 1] through the definition of a TopK encoder."""
    from safetensors.torch import load_file

    model = tiny("llama").load()
    contexts = warehouse.sql(
        "SELECT token_id // 32, list(vocabulary_id ORDER BY token_id) FROM tokens GROUP BY 1 ORDER BY 1 LIMIT 60"
    ).fetchall()
    for layer, stored in layers.items():
        weights = load_file(tiny("llama").saes / f"layer_{layer}" / "sae_weights.safetensors")
        for context, ids in contexts:
            with torch.no_grad():
                output = model.module(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
            x = output.hidden_states[layer + 1][0]
            h = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
            kth, following = h.sort(descending=True).values[:, 3:5].split(1, 1)
            a = torch.where((h >= kth) & (h > 0), h, torch.zeros_like(h)).numpy()
            own = stored.contexts == context
            # The tiny model has no massive tokens: all but the first and the last of a context are included.
            np.testing.assert_array_equal(stored.token_ids[own] - context * 32, np.arange(1, len(ids) - 1))
            # Of two that are equal to rounding either may be taken.
            is_tie = (kth - following < 1e-5).numpy()[1:-1, 0]
            np.testing.assert_allclose(stored.a[own][~is_tie], a[1:-1][~is_tie], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(stored.a[own].sum(1), a[1:-1].sum(1), rtol=1e-4)


def test_discrete_gradients_follow_from_stored_energies(warehouse: Warehouse, layers: dict[int, Layer]) -> None:
    """`discrete` is −numpy.gradient of the stored energies: of all of a context for nll, of runs for hopfield."""
    for layer, stored in layers.items():
        for energy in ENERGIES:
            rows = warehouse.sql(
                "SELECT token_id, value FROM energies WHERE energy = $energy AND coalesce(layer, $layer) = $layer",
                energy=energy, layer=layer,
            ).numpy()  # fmt: skip
            value = dict(zip(rows["token_id"].tolist(), rows["value"].astype(np.float64).tolist(), strict=True))
            expected = []
            for token in stored.token_ids.tolist():
                near = [t for t in (token - 1, token, token + 1) if t in value and t // 32 == token // 32]
                steps = np.diff([value[t] for t in near])
                expected.append(-steps.mean() if len(steps) else np.nan)
            np.testing.assert_allclose(stored.discrete[energy], expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    np.testing.assert_array_equal(layers[1].discrete["nll"], layers[2].discrete["nll"])


# ------------------------------------------------------------------------------------------------ algebra


def exact_root(value: Fraction) -> float:
    """√ of a fraction, to the last digit."""
    scale = 10**60
    return math.isqrt(value.numerator * scale * scale // value.denominator) / scale


def test_the_views_algebra_is_exact(tmp_path: Path) -> None:
    """On given sums every score, interval and z equals exact rational arithmetic to 1e-12."""
    generator = np.random.default_rng(0)
    n_rows = 50
    columns: dict[str, Any] = {
        name: [] for name in ("sum_a", "sum_a2", "sum_g", "sum_g2", "sum_ag", "active_g", "active_g2")
    }
    n_tokens, n_active, n_documents = 4_000, 300, 17
    for _ in range(n_rows):
        a, g = generator.gamma(2, size=n_active), generator.standard_normal(n_active) + 0.3
        rest = generator.standard_normal(n_tokens - n_active) + 0.3
        own = (
            a.sum(),
            (a**2).sum(),
            g.sum() + rest.sum(),
            (g**2).sum() + (rest**2).sum(),
            (a * g).sum(),
            g.sum(),
            (g**2).sum(),
        )
        for name, value in zip(columns, own, strict=True):
            columns[name].append(float(value))
    within = {
        name: generator.gamma(3, size=n_rows).tolist()
        for name in ("sum_i2", "sum_v2", "sum_sd2", "sum_ac2", "sum_gc2", "sum_s2", "null_s2", "sum_a2h2")
    }
    within |= {name: generator.standard_normal(n_rows).tolist() for name in ("sum_s", "null_s")}
    tested = ("p_value", "q_value", "p_specific", "q_specific", "p_reference", "p_documents", "q_documents", "cosine")
    within |= {name: generator.random(n_rows).tolist() for name in (*tested, "q_attribution", "t_specific")}
    within["sum_i2"] = (np.array(within["sum_i2"]) / 1_000).tolist()
    for name in ("sum_i2", "sum_sd2", *tested[2:], "q_attribution", "t_specific"):  # stored as FLOAT
        within[name] = np.array(within[name], dtype=np.float32).astype(np.float64).tolist()
    frame = pl.DataFrame(
        {
            **columns, **within, "feature": list(range(n_rows)), "t_quantile": [2.1199] * n_rows,
            "i_quantile": [2.5] * n_rows,
            "n_tokens": [n_tokens] * n_rows, "n_active": [n_active] * n_rows, "n_documents": [n_documents] * n_rows,
        }
    ).with_columns(
        run_id=1, layer=3, energy=pl.lit("nll"), gradient=pl.lit("decoder"), category=pl.lit("all"), half=pl.lit("AB")
    )  # fmt: skip
    db = tmp_path / "scratch.duckdb"
    with Warehouse(db, writable=True) as warehouse, warehouse.transaction():
        insert_run(warehouse, 1)
        warehouse.append("feature_statistics", frame)
    with Warehouse(db) as warehouse:
        found = warehouse.sql("SELECT * FROM efas ORDER BY feature").numpy()
    assert list(found["feature"]) == list(range(n_rows))
    for i, row in enumerate(frame.iter_rows(named=True)):
        exact = {name: Fraction(value) for name, value in row.items() if isinstance(value, (int, float))}
        sum_a, sum_a2, sum_g, sum_g2, sum_ag = (exact[k] for k in ("sum_a", "sum_a2", "sum_g", "sum_g2", "sum_ag"))
        covariance = sum_ag / n_tokens - sum_a * sum_g / n_tokens**2
        scale = exact_root(
            (sum_a2 / n_tokens - (sum_a / n_tokens) ** 2) * (sum_g2 / n_tokens - (sum_g / n_tokens) ** 2)
        )
        active_g, active_g2 = exact["active_g"], exact["active_g2"]
        active_covariance = sum_ag / n_active - sum_a * active_g / n_active**2
        active_scale = exact_root(
            (sum_a2 / n_active - (sum_a / n_active) ** 2) * (active_g2 / n_active - (active_g / n_active) ** 2)
        )
        small_sample = Fraction(n_documents, n_documents - 1)
        score = float(covariance) / scale
        z_margin = row["i_quantile"] * exact_root(exact["sum_i2"] * small_sample) / (1 - score**2)
        margin = row["t_quantile"] * exact_root(exact["sum_v2"] * small_sample)
        expected = {
            "score": score,
            "score_active": float(active_covariance) / active_scale,
            "score_within": row["sum_s"] / exact_root(exact["sum_ac2"] * exact["sum_gc2"]),
            "ci_low": math.tanh(math.atanh(score) - z_margin),
            "ci_high": math.tanh(math.atanh(score) + z_margin),
            "z": row["sum_s"] / exact_root(exact["sum_s2"]),
            "z_null": row["null_s"] / exact_root(exact["null_s2"]),
            "p_value": row["p_value"],
            **{name: row[name] for name in (*tested, "q_attribution", "t_specific")},
            "z_documents": row["sum_s"] / exact_root(exact["sum_sd2"]),
            "attribution": row["sum_ag"],
            "attribution_low": row["sum_ag"] - margin,
            "attribution_high": row["sum_ag"] + margin,
            "attribution_curvature": float(sum_ag + exact["sum_a2h2"] / 2),
        }
        for name, value in expected.items():
            assert found[name][i] == pytest.approx(value, rel=1e-12, abs=1e-12), name


def insert_run(warehouse: Warehouse, run_id: int) -> None:
    """A run that stands for nothing, current."""
    warehouse.sql(
        """
        INSERT INTO runs BY NAME SELECT
            $run AS run_id, $run::VARCHAR AS identity, true AS is_current, now()::TIMESTAMP AS created_at,
            now()::TIMESTAMP AS updated_at, 'scratch' AS model, '' AS model_sha256, '' AS tokenizer_sha256,
            512 AS vocabulary_size, 4 AS n_layers, 32 AS d_model, 32 AS context_length, 4 AS segment_contexts,
            [3] AS layers, ['nll'] AS energies, ['nats'] AS energy_units, 'float32' AS dtype, 0 AS seed,
            false AS store_gradients, '{}' AS settings, '0' AS elw_version, 0 AS stats_groups, 0 AS stats_tokens
        """,
        run=run_id,
    )


TENTH = float(np.float32(0.1))


@pytest.mark.parametrize(
    ("changes", "null", "not_null"),
    [
        ({"n_active": 0, "sum_a": 0.0, "sum_a2": 0.0, "sum_ag": 0.0, "active_g": 0.0, "active_g2": 0.0},
         ("score", "score_active", "ci_low", "ci_high"), ("attribution",)),
        ({"n_active": 2, "sum_a": 6.0}, ("score_active",), ("score",)),
        ({"n_active": 3, "sum_a": 6.0}, (), ("score_active",)),
        # 51 activations of 0.1, equal as float32: their variance of 2e-19 is rounding, and any correlation noise.
        ({"n_active": 51, "sum_a": 51 * TENTH, "sum_a2": 51 * TENTH**2, "active_g2": 99.0}, ("score_active",),
         ("score",)),
        ({"t_quantile": None, "i_quantile": None, "sum_i2": None, "sum_v2": None, "q_attribution": None},
         ("ci_low", "ci_high", "attribution_low", "attribution_high", "role"), ("score", "attribution", "z")),
        # Statistics of before version 3 keep the interval of a covariance.
        ({"i_quantile": None, "sum_i2": None, "sum_u2": 2.0}, (), ("ci_low", "ci_high")),
        ({"p_value": None, "q_value": None}, ("z", "z_null", "z_documents"), ("score", "score_within")),
        ({"p_documents": None}, ("z_documents", "p_documents"), ("z",)),
        ({"q_attribution": 0.2}, ("role",), ("q_attribution",)),
        ({"sum_a2h2": None}, ("attribution_curvature",), ("attribution",)),
        ({"gradient": "discrete"},
         ("attribution", "attribution_low", "attribution_high", "attribution_curvature", "q_attribution", "role"),
         ("score",)),
        ({"n_documents": 1, "t_quantile": None}, ("ci_low",), ("score", "attribution")),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_null(
    changes: dict[str, Any], null: tuple[str, ...], not_null: tuple[str, ...], tmp_path: Path
) -> None:
    """A score without variance, an interval of few documents, a test not made: NULL, and nothing else with it."""
    row = {
        "run_id": 1, "layer": 3, "feature": 5, "energy": "nll", "gradient": "decoder", "category": "all", "half": "AB",
        "n_tokens": 100, "n_active": 10, "n_documents": 12, "sum_a": 12.0, "sum_a2": 20.0, "sum_g": 8.0,
        "sum_g2": 90.0, "sum_ag": 4.0, "active_g": 3.0, "active_g2": 11.0, "sum_i2": 0.01, "sum_v2": 1.0,
        "i_quantile": 2.5, "t_quantile": 2.2, "sum_sd2": 2.0, "p_documents": 0.04, "q_attribution": 0.01,
        "n_counted": 60, "n_counted_contexts": 20, "n_counted_documents": 8, "sum_ac2": 6.0,
        "sum_gc2": 80.0, "sum_s": 3.0, "sum_s2": 2.0, "null_s": 0.3, "null_s2": 2.0, "p_value": 0.03, "q_value": 0.2,
        "sum_a2h2": 5.0, **changes,
    }  # fmt: skip
    db = tmp_path / "scratch.duckdb"
    with Warehouse(db, writable=True) as warehouse, warehouse.transaction():
        insert_run(warehouse, 1)
        warehouse.append("feature_statistics", pl.DataFrame([row]))
    with Warehouse(db) as warehouse:
        result = warehouse.sql("SELECT * FROM efas")
        found = dict(zip(result.columns, result.fetchall()[0], strict=True))
    for name in null:
        assert found[name] is None, name
    for name in not_null:
        assert found[name] is not None, name


# ------------------------------------------------------------------------------------------------ dead features


def test_dead_features_appear_without_a_score(tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path) -> None:
    """A feature that never fires is in efas with n_active 0 and NULL score, and in no category or half."""
    dead = [3, 40]
    sae = load_sae(tiny("llama").saes / "layer_1")
    sae.b_enc[dead] = -1e4
    save_sae(sae, tmp_path / "sae")
    db = tmp_path / "dead.duckdb"
    options = IngestOptions(
        db=db,
        model=str(tiny("llama").folder),
        saes=(tmp_path / "sae",),
        energies=ENERGIES,
        lens=tiny("llama").lens,
        context_length=32,
        dtype="float32",
        max_tokens=1,
    )
    ingest([small_corpus], options)
    with Warehouse(db) as warehouse:
        for energy, gradient in KINDS:
            rows = efas_rows(warehouse, 1, energy, gradient)
            assert sorted(j for category, half, j in rows if (category, half) == ("all", "AB")) == list(range(64))
            for category, half, feature in rows:
                row = rows[category, half, feature]
                assert (row["n_active"] == 0) == (feature in dead)
                if feature in dead:
                    assert (category, half) == ("all", "AB")
                    assert row["n_tokens"] > 0
                    for name in ("score", "score_active", "z", "q_value", "ci_low", "role"):
                        assert row[name] is None
                    assert row["attribution"] == (0 if gradient == "decoder" else None)
                else:
                    assert -1 <= row["score"] <= 1
        assert not set(dead) & {j for (j,) in warehouse.sql("SELECT feature FROM features").fetchall()}
        assert not set(dead) & {j for (j,) in warehouse.sql("SELECT feature FROM alignments").fetchall()}


# ------------------------------------------------------------------------------------------------ views


def test_alignments_are_the_rows_of_efas_that_its_rule_names(warehouse: Warehouse) -> None:
    """|score| > 0.1 or q_specific < 0.05, each with its reason; nothing more and nothing less."""
    columns = "layer, feature, energy, gradient, category, score, q_specific"
    expected = {}
    for *key, score, q in warehouse.sql(f"SELECT {columns} FROM efas").fetchall():
        large, found = score is not None and abs(score) > 0.1, q is not None and q < 0.05
        if large or found:
            reasons = ["|score| > 0.1"] * large + ["q_specific < 0.05"] * found
            expected[tuple(key)] = (score, q, " and ".join(reasons))
    rows = warehouse.sql(f"SELECT {columns}, reason FROM alignments").fetchall()
    assert {tuple(key): (score, q, reason) for *key, score, q, reason in rows} == expected
    assert len(rows) == len(expected)
    assert {reason for _, _, reason in expected.values()} >= {"|score| > 0.1", "|score| > 0.1 and q_specific < 0.05"}


def test_layer_energy_equals_numpy(warehouse: Warehouse) -> None:
    """Mean, spread and quantiles of each energy by layer and category; nll beside ln V."""
    rows = warehouse.sql(
        """
        SELECT e.energy, e.layer, d.category, e.value FROM energies AS e, contexts AS c, documents AS d
        WHERE c.context_id = e.token_id // 32 AND d.document_id = c.document_id
        """
    ).fetchall()
    values: dict[tuple[Any, ...], list[float]] = {}
    for energy, layer, category, value in rows:
        for name in (category, "all"):
            values.setdefault((energy, layer, name), []).append(value)
    result = warehouse.sql("SELECT * FROM layer_energy")
    found = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    assert len(found) == len(values) == (1 + 4 * 2) * 3  # nll has no layer
    for row in found:
        own = np.array(values[row["energy"], row["layer"], row["category"]])
        assert row["n_tokens"] == len(own)
        assert row["mean"] == pytest.approx(own.mean(), rel=1e-12)
        assert row["sd"] == pytest.approx(own.std(), rel=1e-9)
        for name, level in (("q05", 0.05), ("q25", 0.25), ("median", 0.5), ("q75", 0.75), ("q95", 0.95)):
            assert row[name] == pytest.approx(np.quantile(own, level), rel=1e-6)
        is_guess = row["energy"] in ("nll", "logit_lens", "tuned_lens")
        assert row["uniform_guess"] == (pytest.approx(math.log(512)) if is_guess else None)
        assert row["uncalibrated"] == (own.mean() > math.log(512) if is_guess else None)
    lens = [row for row in found if row["energy"] == "logit_lens"]
    assert any(row["uncalibrated"] for row in lens)


def test_features_view(warehouse: Warehouse, layers: dict[int, Layer]) -> None:
    """Density is the share of included tokens, and top_tokens are the texts of the strongest activations."""
    texts = dict(warehouse.sql("SELECT token_id, text FROM tokens").fetchall())
    result = warehouse.sql("SELECT * FROM features")
    rows = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    assert len(rows) == 128
    for row in rows:
        stored = layers[row["layer"]]
        a = stored.a[:, row["feature"]]
        assert row["n_active"] == (a > 0).sum()
        assert row["density"] == pytest.approx((a > 0).mean(), rel=1e-12)
        assert row["mean_activation"] == pytest.approx(a[a > 0].mean(), rel=1e-9)
        assert row["max_activation"] == a.max()
        order = np.argsort(-a, kind="stable")
        if len(set(a[order[:9]])) == 9:  # without ties the order is the only one
            assert row["top_tokens"] == [texts[token] for token in stored.token_ids[order[:8]].tolist()]


def test_null_control_is_the_share_of_rejections(warehouse: Warehouse) -> None:
    """share_rejected counts |z_null| > 1.96 among tested features, with the true pairing beside it."""
    rows = warehouse.sql("SELECT energy, gradient, layer, category, z, z_null FROM efas").fetchall()
    found = warehouse.sql(
        "SELECT energy, gradient, layer, category, n_tested, share_rejected, share_rejected_true_pairing "
        "FROM null_control"
    ).fetchall()
    assert len(found) == 5 * 2 * 2 * 3
    for *place, n_tested, share, share_true in found:
        own = [(z, z_null) for *other, z, z_null in rows if other == place and z_null is not None]
        assert n_tested == len(own)
        assert share == pytest.approx(np.mean([abs(z_null) > 1.96 for _, z_null in own]))
        assert share_true == pytest.approx(np.mean([abs(z) > 1.96 for z, _ in own]))


def test_top_examples(
    warehouse: Warehouse, layers: dict[int, Layer], small_corpus: Path, tiny: Callable[..., Any]
) -> None:
    """The n strongest activations in order, each with its g and the document's own text around it."""
    tokenizer = tiny("llama").load().tokenizer
    documents = {}
    for path in small_corpus.glob("*/*.txt"):
        ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
        documents[path.relative_to(small_corpus).as_posix()] = [tokenizer.decode([i]) for i in ids]
    for layer, feature, n in ((1, 0, 5), (2, 17, 12), (2, 63, 1)):
        a = layers[layer].a[:, feature]
        result = warehouse.sql("SELECT * FROM top_examples($layer, $feature, $n)", layer=layer, feature=feature, n=n)
        rows = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
        order = np.lexsort((layers[layer].token_ids, -a))[:n]
        assert [row["token_id"] for row in rows] == layers[layer].token_ids[order].tolist()
        assert [row["activation"] for row in rows] == a[order].tolist()
        for place, row in zip(order, rows, strict=True):
            pieces, here = documents[row["path"]], row["document_position"]
            start = here - here % 32  # the context's first token
            assert row["category"] == row["path"].split("/")[0] == layers[layer].categories[place]
            assert row["token"] == pieces[here]
            assert row["before"] == "".join(pieces[max(start, here - 12) : here])
            assert row["after"] == "".join(pieces[here + 1 : min(start + 32, here + 9)])
            if "�" not in (around := row["before"] + row["token"] + row["after"]):
                assert around in (small_corpus / row["path"]).read_text(encoding="utf-8")
            for energy in ENERGIES:
                g = layers[layer].g(energy, "decoder", feature)[place]
                assert row[f"g_{energy}"] == pytest.approx(g, rel=1e-4, abs=1e-4)


def test_top_examples_of_a_key_that_does_not_exist_is_empty(warehouse: Warehouse) -> None:
    """No layer 9 and no feature 999: nothing, not everything. Asking for more than there is gives all there is."""
    for layer, feature in ((9, 0), (1, 999), (1, -1)):
        assert warehouse.sql("SELECT * FROM top_examples($a, $b, 10)", a=layer, b=feature).fetchall() == []
    assert warehouse.sql("SELECT * FROM top_examples(1, 0, 0)").fetchall() == []
    n_active = warehouse.sql("SELECT n_active FROM features WHERE layer = 1 AND feature = 0").value()
    assert len(warehouse.sql("SELECT * FROM top_examples(1, 0, 1000000)").fetchall()) == n_active


PUBLIC = {
    "efas": "SELECT * FROM efas ORDER BY ALL",
    "efas_halves": "SELECT * FROM efas_halves ORDER BY ALL",
    "alignments": "SELECT * FROM alignments ORDER BY ALL",
    "features": "SELECT * EXCLUDE top_tokens FROM features ORDER BY ALL",
    "layer_energy": "SELECT * FROM layer_energy ORDER BY ALL",
    "null_control": "SELECT * FROM null_control ORDER BY ALL",
    "top_examples": "SELECT * FROM top_examples(1, 0, 5)",
}


def test_two_runs_in_one_file_never_mix(
    tiny_warehouse: Path, tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path
) -> None:
    """Public views show the current run alone, the last ingest until another is chosen; efas_all shows each apart."""
    db = tmp_path / "two.duckdb"
    shutil.copy(tiny_warehouse, db)

    def shown() -> dict[str, list[tuple[Any, ...]]]:
        with Warehouse(db) as warehouse:
            return {name: warehouse.sql(query).fetchall() for name, query in PUBLIC.items()}

    def use(run_id: int) -> None:
        with Warehouse(db, writable=True) as warehouse, warehouse.transaction():
            make_current(warehouse, run_id)

    first = shown()
    model = tiny("llama")
    options = IngestOptions(
        db=db, model=str(model.folder), saes=(model.saes,), layers=(1,), context_length=32, dtype="float32", seed=1,
        max_tokens=1,
    )  # fmt: skip
    assert ingest([small_corpus], options).run_id == 2
    second = shown()
    use(1)
    assert shown() == first
    use(2)
    assert shown() == second
    for name in PUBLIC:
        assert first[name] != second[name], name
    assert {row[0] for row in first["efas"]} == {1}
    assert {row[0] for row in second["efas"]} == {2}
    with Warehouse(db) as warehouse:
        assert warehouse.sql("SELECT run_id FROM current_run").fetchall() == [(2,)]
        for run_id, rows in ((1, first["efas"]), (2, second["efas"])):
            query = "SELECT * FROM efas_all WHERE run_id = $run ORDER BY ALL"
            assert warehouse.sql(query, run=run_id).fetchall() == rows
        assert warehouse.sql("SELECT count(*) FROM efas_all").value() == len(first["efas"]) + len(second["efas"])
    # An ingest that has nothing to do makes its run current again.
    again = replace(
        options, seed=0, layers=None, energies=ENERGIES, lens=model.lens, store_gradients=True, max_tokens=None
    )
    ingest([small_corpus], again)
    assert shown() == first


# ------------------------------------------------------------------------------------------------ SmolLM2


@pytest.fixture(scope="module")
def real_layers(real_warehouse: Path) -> dict[int, Layer]:
    """The real warehouse's rows, by layer."""
    with Warehouse(real_warehouse) as warehouse:
        return {
            layer: read_layer(warehouse, layer, decoder_rows(shipped_folder(DEFAULT_MODEL, layer)))
            for (layer,) in warehouse.sql("SELECT DISTINCT layer FROM token_layers ORDER BY 1").fetchall()
        }


@real
@pytest.mark.real
@pytest.mark.parametrize(("energy", "gradient"), KINDS)
def test_real_scores_equal_scipy(
    energy: str, gradient: str, real_warehouse: Path, real_layers: dict[int, Layer]
) -> None:
    """On SmolLM2 the scores of at least 200 features, often and seldom active ones, equal pearsonr to 1e-6.

    Over fewer than ten active tokens float32's rounding of g can weigh more, as g may be a thousandth of its terms.
    """
    compared = 0
    with Warehouse(real_warehouse) as warehouse:
        for layer, stored in real_layers.items():
            found = efas_rows(warehouse, layer, energy, gradient)
            n_active = (stored.a > 0).sum(0)
            features = np.argsort(-n_active, kind="stable")[: (n_active >= 3).sum()]
            for feature in features[:: max(1, len(features) // 150)]:
                g = stored.g(energy, gradient, feature)
                used = ~np.isnan(g)
                a, g = stored.a[used, feature], g[used]
                row = found["all", "AB", feature]
                assert (row["n_tokens"], row["n_active"]) == (len(a), (a > 0).sum())
                assert_close(row["score"], pearson(a, g), 1e-6, (layer, feature))
                tolerance = 1e-6 if (a > 0).sum() >= 10 else 1e-5
                assert_close(row["score_active"], pearson(a[a > 0], g[a > 0]), tolerance, (layer, feature))
                compared += 1
    assert compared >= 200


@real
@pytest.mark.real
def test_real_test_equals_a_reference_from_the_tables(real_warehouse: Path, real_layers: dict[int, Layer]) -> None:
    """On SmolLM2 z and its control equal a recomputation from vectors and plan."""
    with Warehouse(real_warehouse) as warehouse:
        plan = plan_rows(warehouse)
        layer, stored = max(real_layers.items())
        features = np.argsort(-(stored.a > 0).sum(0), kind="stable")[:200]
        some = replace(stored, a=stored.a[:, features], decoder=stored.decoder[features])
        found = efas_rows(warehouse, layer, "nll", "decoder")
        expected = within_context_test(some, "nll", plan, length=128)
    z = expected.s.sum(0) / np.sqrt((expected.s**2).sum(0))
    z_null = expected.null.sum(0) / np.sqrt((expected.null**2).sum(0))
    compared = 0
    for i, feature in enumerate(features):
        row = found["all", "AB", feature]
        if row["z"] is not None:
            assert_close(row["z"], float(z[i]), 1e-4, feature)
            assert_close(row["z_null"], float(z_null[i]), 1e-4, feature)
            compared += 1
    assert compared >= 20


@real
@pytest.mark.real
def test_real_energies_are_the_models_own_loss(real_warehouse: Path) -> None:
    """Stored NLL equals cross entropy on SmolLM2's logits, and its mean is a trained model's loss."""
    model = load_model(DEFAULT_MODEL)
    with Warehouse(real_warehouse) as warehouse:
        contexts = warehouse.sql(
            "SELECT token_id // 128 AS context, list(vocabulary_id ORDER BY token_id) FROM tokens "
            "GROUP BY context ORDER BY hash(context) LIMIT 6"
        ).fetchall()
        for context, ids in contexts:
            found = warehouse.sql(
                "SELECT value FROM energies WHERE energy = 'nll' AND token_id // 128 = $context ORDER BY token_id",
                context=context,
            ).numpy()["value"]
            tokens = torch.tensor([ids])
            with torch.no_grad():
                output = model.module(input_ids=tokens, labels=tokens, use_cache=False)
            expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], tokens[0, 1:], reduction="none")
            np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)
            assert found.mean() == pytest.approx(float(output.loss), rel=1e-4)
        assert 1 < warehouse.sql("SELECT mean FROM layer_energy WHERE energy = 'nll' AND category = 'all'").value() < 5


@real
@pytest.mark.real
def test_real_decoder_gradients_are_slopes() -> None:
    """−⟨∂E/∂x, d_j⟩ on a float64 SmolLM2 equals central differences of ΣE, within 1 % of the RMS gradient."""
    model = load_model(DEFAULT_MODEL, torch.float64)
    layers = (10, 15, 25)
    saes = {layer: load_sae(shipped_folder(DEFAULT_MODEL, layer)) for layer in layers}
    text = "A function that returns the greatest common divisor of two integers is short: def gcd(a, b): return a if b"
    tokens = torch.tensor([model.tokenize(text)[:24]])
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    mask[:, [0, -1]] = False
    forward = run_forward(model, saes, tokens, torch.tensor([tokens.shape[1]]), lambda _layer, _norms: mask.clone())
    gradients = NegativeLogLikelihood().read(forward).gradients
    generator = np.random.default_rng(0)

    def total(layer: int, token: int, nudge: torch.Tensor) -> float:
        def add(_module: Any, _inputs: Any, output: Any) -> Any:
            x = (output[0] if isinstance(output, tuple) else output).clone()
            x[0, token] += nudge
            return (x, *output[1:]) if isinstance(output, tuple) else x

        handle = model.blocks[layer].register_forward_hook(add)
        try:
            with torch.no_grad():
                logits = model.module(input_ids=tokens, use_cache=False).logits[0]
        finally:
            handle.remove()
        return float(torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="sum"))

    for layer, sae in saes.items():
        rows = sae.W_dec.double()
        g = -gradients[layer][0].double() @ rows.T
        rms = float(g[mask[0]].square().mean().sqrt())
        active = forward.activations[layer]
        for token in generator.choice(np.flatnonzero(mask[0].numpy()), 4, replace=False):
            feature = int(active.indices[token, int(active.values[token].argmax())])
            step = 0.01 * float(forward.residuals[layer][0, token].detach().norm() / rows[feature].norm())
            above, below = (total(layer, int(token), sign * step * rows[feature]) for sign in (1, -1))
            assert abs(float(g[token, feature]) + (above - below) / (2 * step)) < 0.01 * rms, (layer, token, feature)


@real
@pytest.mark.real
def test_real_signal_and_its_positive_control(real_warehouse: Path) -> None:
    """Hopfield scores are as high as they must be, NLL scores as small as a real model's are."""
    with Warehouse(real_warehouse) as warehouse:
        rows = warehouse.sql(
            """
            SELECT energy, median(score_active), median(abs(score)) FROM efas
            WHERE gradient = 'decoder' AND category = 'all' AND n_active >= 50 GROUP BY energy
            """
        ).fetchall()
    found = {energy: (active, absolute) for energy, active, absolute in rows}
    assert 0.85 < found["hopfield"][0] < 0.99
    assert found["nll"][1] < 0.1
