"""Mutual information: every count against the definition on dense data, every figure in bits against numpy."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.stats import norm

from energy_lens.ingest.energies.registry import make_energies
from energy_lens.ingest.inclusion import FIRST, INCLUDED, LAST
from energy_lens.ingest.pipeline.commits import store_group
from energy_lens.ingest.pipeline.groups import GroupBuilder
from energy_lens.ingest.reading import ContextReading, LayerReading, Reader
from energy_lens.ingest.sae.autoencoder import SparseActivations, SparseAutoencoder
from energy_lens.ingest.sae.choosing import sae_folders
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.statistics import histograms
from energy_lens.ingest.statistics.directions import Directions
from energy_lens.ingest.statistics.finish import finish
from energy_lens.ingest.statistics.histograms import LayerBins, LayerHistograms, quartile_rows, read_histogram_plan
from energy_lens.ingest.statistics.stream import LayerRow, LayerStatistics
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.plan import Context, PlannedDocument, plan_groups
from energy_lens.warehouse.runs import RunSettings, append_plan, create_run, make_current

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

KINDS = ("active", "inactive", "mates_active", "mates_inactive")


def estimate(active: Integers, inactive: Integers, n: int) -> float | None:
    """Bits from 4 x 8 active counts, 8 sampled inactive ones and the number of all tokens, by the definition."""
    n_inactive = n - active.sum()
    if n == 0 or (n_inactive and not inactive.sum()):
        return None
    joint = np.zeros((5, 8))
    joint[1:] = active / n
    if n_inactive:
        joint[0] = n_inactive / n * inactive / inactive.sum()
    outer = joint.sum(1)[:, None] * joint.sum(0)[None]
    some = joint > 0
    plug_in = float((joint[some] * np.log2(joint[some] / outer[some])).sum())
    m_a, m_g, m_both = (joint.sum(1) > 0).sum(), (joint.sum(0) > 0).sum(), some.sum()
    return plug_in + (m_a + m_g - m_both - 1) / (2 * n * np.log(2))


# ------------------------------------------------------------------------------------------------ stored rows


@dataclass
class Layer:
    """One layer of the tiny warehouse, dense: [context, position, …], in the order of context ids."""

    included: NDArray[np.bool_]  #: [context, position]
    a: NDArray[np.float32]  #: [context, position, feature]
    decoder: Floats  #: [feature, d_model]
    quartiles: NDArray[np.float32]  #: [feature, 3]
    categories: NDArray[np.object_]  #: [context]
    following: Integers  #: [context] the next context of its row


@pytest.fixture(scope="module")
def length(tiny_warehouse: Path) -> int:
    with Warehouse(tiny_warehouse) as opened:
        return int(opened.sql("SELECT context_length FROM runs").value())


@pytest.fixture
def warehouse(tiny_warehouse: Path) -> Iterator[Warehouse]:
    with Warehouse(tiny_warehouse) as opened:
        yield opened


@pytest.fixture(scope="module")
def layers(tiny_warehouse: Path, tiny: Callable[..., Any], length: int) -> dict[int, Layer]:
    found = {}
    with Warehouse(tiny_warehouse) as warehouse:
        contexts = warehouse.sql(
            """
            SELECT context_id, category, p.group_id, p.row
            FROM contexts JOIN documents USING (run_id, document_id) JOIN plan AS p USING (run_id, context_id)
            ORDER BY p.group_id, p.row, p.lane
            """
        ).fetchall()
        rows: dict[tuple[int, int], list[int]] = {}
        for context_id, _, group, row in contexts:
            rows.setdefault((group, row), []).append(context_id)
        following = np.zeros(len(contexts), dtype=np.int64)
        for own in rows.values():
            following[own] = np.roll(own, -1)
        categories = np.empty(len(contexts), dtype=object)
        for context_id, category, _, _ in contexts:
            categories[context_id] = category
        for layer in (1, 2):
            sae = load_sae(tiny("llama").saes / f"layer_{layer}")
            assert sae.quartiles is not None
            included = np.zeros(len(contexts) * length, dtype=bool)
            a = np.zeros((len(contexts) * length, sae.d_sae), dtype=np.float32)
            tokens = warehouse.sql("SELECT token_id FROM token_layers WHERE layer = $l AND included", l=layer).numpy()
            included[tokens["token_id"]] = True
            active = warehouse.sql(
                "SELECT token_id, feature, activation FROM activations WHERE layer = $l", l=layer
            ).numpy()
            a[active["token_id"], active["feature"]] = active["activation"]
            found[layer] = Layer(
                included.reshape(-1, length), a.reshape(-1, length, sae.d_sae), sae.W_dec.double().numpy(),
                sae.quartiles.numpy(), categories, following,
            )  # fmt: skip
    return found


def decoder_gradients(warehouse: Warehouse, layer: int, energy: str, stored: Layer) -> tuple[Floats, Floats]:
    """g [context, position, feature] from the stored vectors, in float64, and how far float32 may be off it.

    NaN where not included. Decoder rows have length 1.
    """
    rows = warehouse.sql(
        "SELECT token_id, vector FROM gradients WHERE layer = $layer AND energy = $energy", layer=layer, energy=energy
    ).numpy()
    vectors = np.full((stored.included.size, stored.decoder.shape[1]), np.nan)
    vectors[rows["token_id"]] = np.stack(list(rows["vector"]))
    vectors = vectors.reshape(*stored.included.shape, -1)
    return -vectors @ stored.decoder.T, 1e-6 * np.linalg.norm(vectors, axis=-1, keepdims=True)


def gradient_edges(warehouse: Warehouse, layer: int, energy: str) -> Floats:
    """[feature, 7]: calibration mean plus standard deviation times the normal octiles, as float32."""
    rows = warehouse.sql(
        "SELECT g_mean, g_sd FROM calibration WHERE layer = $layer AND energy = $energy ORDER BY feature",
        layer=layer, energy=energy,
    ).numpy()  # fmt: skip
    edges = rows["g_mean"][:, None] + rows["g_sd"][:, None] * norm.ppf(np.arange(1, 8) / 8)
    return edges.astype(np.float32).astype(np.float64)


def sampled_contexts(warehouse: Warehouse) -> NDArray[np.bool_]:
    """[context] whether the first hex digit of its hash is 0 or 1."""
    rows = warehouse.sql(
        """
        SELECT r.seed, d.sha256, c.context_index
        FROM contexts AS c JOIN documents AS d USING (run_id, document_id) JOIN runs AS r USING (run_id)
        ORDER BY c.context_id
        """
    ).fetchall()
    return np.array([hashlib.sha256(":".join(map(str, row)).encode()).hexdigest()[0] in "01" for row in rows])


def cells(a: Integers, g: Integers, chosen: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """(active [feature, 4, 8], inactive [feature, 8]) from bins [context, position, feature] at chosen
    [context, position].
    """
    both = 8 * a[chosen] + g[chosen]
    counts = np.stack([np.bincount(own, minlength=40) for own in both.T]).reshape(-1, 5, 8)
    return counts[:, 1:], counts[:, 0]


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("energy", ["nll", "logit_lens", "attention", "hopfield"])
def test_counts_and_bits_equal_the_definition(
    energy: str, layer: int, warehouse: Warehouse, layers: dict[int, Layer]
) -> None:
    """Every count of every category from stored vectors, in float64 and dense; every figure of the view from counts.

    Only a g within float32's rounding of an edge may be counted on its other side.
    """
    stored = layers[layer]
    g, margin = decoder_gradients(warehouse, layer, energy, stored)
    edges = gradient_edges(warehouse, layer, energy)
    a_bin = (stored.a > 0) * (1 + (stored.a[..., None] > stored.quartiles).sum(-1))
    g_bin = (g[..., None] > edges).sum(-1)
    doubtful = (np.abs(g[..., None] - edges) <= margin[..., None]).any(-1).sum((0, 1))  # [feature]
    assert doubtful.mean() < 1
    sampled = sampled_contexts(warehouse)
    following = stored.following
    own = stored.included
    paired = own & own[following] & (following != np.arange(len(following)))[:, None]

    found = {
        (category, feature): row
        for category, feature, *row in warehouse.sql(
            """
            SELECT category, feature, n_tokens, mates_tokens, active, inactive, mates_active, mates_inactive
            FROM histogram_cells WHERE layer = $layer AND energy = $energy
            """,
            layer=layer, energy=energy,
        ).fetchall()
    }  # fmt: skip
    shown = {
        (category, feature): row
        for category, feature, *row in warehouse.sql(
            """
            SELECT category, feature, n_tokens, n_active, mi, mi_mates, mi_excess
            FROM mutual_information WHERE layer = $layer AND energy = $energy
            """,
            layer=layer, energy=energy,
        ).fetchall()
    }  # fmt: skip
    known = ~np.isnan(stored.quartiles).any(1)
    exact = 0
    for category in ("all", "code", "natural"):
        of_category = ((stored.categories == category) | (category == "all"))[:, None]
        mine, pairs = own & of_category, paired & of_category
        of_g = g_bin[following]
        expected = (
            cells(a_bin, g_bin, mine)[0], cells(a_bin, g_bin, mine & sampled[:, None])[1],
            cells(a_bin, of_g, pairs)[0], cells(a_bin, of_g, pairs & sampled[following, None])[1],
        )  # fmt: skip
        n_active = (a_bin > 0)[mine].sum(0)
        for feature in range(len(stored.decoder)):
            row = shown.pop((category, feature), None)
            assert (row is not None) == (category == "all" or n_active[feature] > 0)
            counts = found.pop((category, feature), None)
            assert (counts is not None) == (row is not None and bool(known[feature]))
            if row is None:
                continue
            assert row[:2] == [mine.sum(), n_active[feature]]
            if counts is None:
                assert row[2:] == [None, None, None]
                continue
            n_tokens, n_pairs, *lists = counts
            assert (n_tokens, n_pairs) == (mine.sum(), pairs.sum())
            arrays = [np.array(values) for values in lists]
            for name, values, theirs in zip(KINDS, arrays, expected, strict=True):
                moved = np.abs(values - theirs[feature].ravel()).sum()
                assert moved <= 2 * doubtful[feature], (name, category, feature)
                assert values.sum() == theirs[feature].sum(), (name, category, feature)
            # From here on the counts are those of the file, or of the definition where none is in doubt.
            if doubtful[feature] == 0:
                exact += 1
                arrays = [theirs[feature].ravel() for theirs in expected]
            mi = estimate(arrays[0].reshape(4, 8), arrays[1], mine.sum())
            mates = estimate(arrays[2].reshape(4, 8), arrays[3], pairs.sum())
            assert mi is not None
            assert mates is not None
            np.testing.assert_allclose(row[2:], [mi, mates, mi - mates], rtol=1e-9, atol=1e-12)
    assert not shown
    assert not found
    assert exact > 50


def test_a_rebuild_equals_what_is_there(tiny_warehouse: Path, tiny: Callable[..., Any], tmp_path: Path) -> None:
    """histogram_cells follows from stored tables alone, row for row."""
    db = tmp_path / "copy.duckdb"
    shutil.copy(tiny_warehouse, db)
    with Warehouse(db, writable=True) as copy:
        copy.sql("CREATE TEMP TABLE before AS FROM histogram_cells")
        copy.sql("DELETE FROM histogram_cells")
        decoders = {sae.layer: sae.W_dec for sae in map(load_sae, sae_folders(tiny("llama").saes))}
        finish(lambda: nullcontext(copy), 1, decoders)
        for one, other in (("before", "histogram_cells"), ("histogram_cells", "before")):
            assert copy.sql(f"SELECT count(*) FROM (FROM {one} EXCEPT ALL FROM {other})").value() == 0
        assert copy.sql("SELECT count(*) > 0 FROM before").value()


# ------------------------------------------------------------------------------------------------ the stream


@st.composite
def rows(draw: st.DrawFn) -> tuple[NDArray[np.bool_], list[bool], Integers, Integers]:
    """Included tokens, sampled contexts, activations and gradients [context, position, feature] on a grid of halves."""
    n_contexts, n_positions = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    shape = (n_contexts, n_positions)
    included = draw(hnp.arrays(np.bool_, shape, elements=st.sampled_from([True, True, True, False])))
    sampled = draw(st.lists(st.booleans(), min_size=n_contexts, max_size=n_contexts))
    a = draw(hnp.arrays(np.int64, (*shape, 3), elements=st.integers(0, 8)))
    return included, sampled, a, draw(hnp.arrays(np.int64, (*shape, 3), elements=st.integers(-9, 9)))


@settings(max_examples=60)
@given(given_rows=st.lists(rows(), min_size=1, max_size=3))
def test_the_stream_equals_loops_over_tokens(given_rows: Sequence[Any]) -> None:
    """Whatever is included and sampled; values on an edge go to the lower bin; pieces of 2 tokens and 2 features."""
    # Decoder rows are unit vectors and all numbers halves, so that every product is exact.
    sae = SparseAutoencoder(0, 3, torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3))
    edges_a = torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.5, 3.5], [torch.nan] * 3])
    edges_g = torch.tensor([[-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], [0.0] * 7])
    statistics = LayerStatistics(sae, ["nll"])
    counted = LayerHistograms(sae, ["nll"], LayerBins(edges_a, {"nll": edges_g}))
    expected = {"inactive": np.zeros((2, 8)), "mates_active": np.zeros((2, 4, 8)), "mates_inactive": np.zeros((2, 8))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histograms, "DENSE_TOKENS", 2)
        patch.setattr(histograms, "DENSE_FEATURES", 2)
        for included, sampled, halves_a, halves_g in given_rows:
            a, g = halves_a / 2 * included[..., None], halves_g / 2
            row = LayerRow(
                torch.from_numpy(included),
                SparseActivations(torch.from_numpy(a).float(), torch.arange(3).expand(*included.shape, 3)),
                {"nll": torch.from_numpy(-g).float()},
            )
            counted.add(row, statistics.add(row).mates_g, sampled)
            n_contexts = len(included)
            for c, t in np.argwhere(included):
                for j in range(2):
                    bin_a = int((a[c, t, j] > edges_a[j].numpy()).sum())
                    bins_g = (g[:, t, j, None] > edges_g[j].numpy()).sum(-1)
                    following = (c + 1) % n_contexts
                    if a[c, t, j] == 0 and sampled[c]:
                        expected["inactive"][j, bins_g[c]] += 1
                    if following == c or not included[following, t]:
                        continue
                    if a[c, t, j] > 0:
                        expected["mates_active"][j, bin_a, bins_g[following]] += 1
                    elif sampled[following]:
                        expected["mates_inactive"][j, bins_g[following]] += 1
    found = counted.columns("nll")
    np.testing.assert_array_equal(found.pop("feature"), [0, 1])
    assert found.keys() == expected.keys()
    for name, counts in expected.items():
        np.testing.assert_array_equal(found[name], counts.reshape(2, -1), err_msg=name)


# ------------------------------------------------------------------------------------------------ known information


@dataclass
class SimulatedReader(Reader):
    """Readings that were made up instead of read."""

    readings: Mapping[int, ContextReading] = None  # type: ignore[assignment]

    def read(self, contexts: Sequence[tuple[Context, NDArray[np.int32]]]) -> Iterator[ContextReading]:
        return (self.readings[context.context_id] for context, _ in contexts)


@pytest.fixture
def simulate(tiny: Callable[..., Any], tmp_path: Path) -> Callable[..., pl.DataFrame]:
    """simulate(a, g, quartiles): rows of `mutual_information`, by feature, of a run with these numbers.

    a: bins 0 to 4, g: standard normal in its calibration; both [document, context, position, feature].
    """
    model = tiny("llama").load()

    def run(a: Integers, g: Floats, quartiles: bool = True) -> pl.DataFrame:
        n_documents, n_contexts, n_tokens, n_features = a.shape
        unit = torch.eye(n_features)
        edges = torch.tensor([[1.0, 2.0, 3.0]]).expand(n_features, 3) if quartiles else None
        sae = SparseAutoencoder(
            1, n_features, unit, torch.zeros(n_features), unit, torch.zeros(n_features), quartiles=edges
        )
        documents, readings, details = [], {}, {}
        reasons = np.full(n_tokens, INCLUDED, dtype=np.int8)
        reasons[0], reasons[-1] = FIRST, LAST
        included = reasons == INCLUDED
        for d in range(n_documents):
            own = [Context(d * n_contexts + i, d, i, i * n_tokens, n_tokens) for i in range(n_contexts)]
            sha256 = hashlib.sha256(str(d).encode()).hexdigest()
            documents.append(PlannedDocument(d, "text", "A", sha256, tuple(own)))
            details[d] = {"path": str(d), "source": "", "aliases": [], "n_bytes": 0, "n_tokens": 0,
                          "n_dropped_tokens": 0}  # fmt: skip
            for i, context in enumerate(own):
                values = torch.from_numpy(np.maximum(a[d, i] - 0.5, 0) * included[:, None]).float()
                reading = LayerReading(
                    torch.ones(n_tokens), reasons,
                    SparseActivations(values, torch.arange(n_features).expand(n_tokens, n_features)),
                    {"nll": -torch.from_numpy(g[d, i]).float()}, {"nll": np.full(n_tokens, np.nan)},
                )  # fmt: skip
                readings[context.context_id] = ContextReading(
                    context, np.zeros(n_tokens, dtype=np.int64), {("nll", None): np.zeros(n_tokens, dtype=np.float32)},
                    {1: reading},
                )  # fmt: skip
        groups = plan_groups(documents, 4, 0)
        reader = SimulatedReader(model, {1: sae}, make_energies(["nll"]), 8, readings=readings)
        db = tmp_path / "simulated.duckdb"
        db.unlink(missing_ok=True)
        with Warehouse(db, writable=True) as warehouse:
            with warehouse.transaction():
                given = RunSettings("", "", n_tokens, {1: ""}, {"nll": 1}, "float32", 0, False)
                energies = [energy.facts() for energy in reader.energies]
                run_id = create_run(warehouse, given, model.facts(), [sae.facts(1.0)], energies, 4, "0")
                append_plan(warehouse, run_id, documents, details, groups)
                make_current(warehouse, run_id)
                place = {"run_id": pl.lit(run_id), "layer": pl.lit(1)}
                warehouse.append("activation_quartiles", quartile_rows(sae).with_columns(run_id=pl.lit(run_id)))
                calibration = pl.DataFrame({"feature": range(n_features), "g_mean": 0.0, "g_sd": 1.0})
                warehouse.append("calibration", calibration.with_columns(energy=pl.lit("nll"), **place))
            plan = read_histogram_plan(warehouse, run_id, {1: sae}, ["nll"])
        nothing = {context_id: np.zeros(n_tokens, dtype=np.int32) for context_id in readings}
        directions = {1: Directions.of(sae, np.arange(0), 0)}
        builder = GroupBuilder(run_id, n_tokens, reader, plan, directions, store_gradients=False)
        with Warehouse(db, writable=True) as warehouse:
            for group in groups:
                store_group(warehouse, run_id, builder.build(group, nothing))
        finish(lambda: Warehouse(db, writable=True), run_id, {1: unit})
        with Warehouse(db) as warehouse:
            return warehouse.sql("SELECT * FROM mutual_information WHERE category = 'all' ORDER BY feature").pl()

    return run


#: Documents, contexts of each, tokens of each, features: 40 k included tokens.
SHAPE = (80, 8, 66, 16)


def standard_error(values: pl.Series) -> float:
    return float(np.std(values.to_numpy(), ddof=1) / np.sqrt(len(values)))


def test_planted_dependence_is_found_in_bits(simulate: Callable[..., pl.DataFrame]) -> None:
    """Bins of a drawn given those of g, by a law whose information is known: mi and mi_excess are that, mi_mates 0."""
    generator = np.random.default_rng(0)
    law = np.array([0.02, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.25])[:, None] * np.array([0.4, 0.3, 0.2, 0.1])
    law = np.concatenate([1 - law.sum(1, keepdims=True), law], 1)  # P(a | g) [g, a]
    joint = law / 8
    bits = float((joint * np.log2(joint / np.outer(joint.sum(1), joint.sum(0)))).sum())
    g = generator.standard_normal(SHAPE)
    g_bin = np.searchsorted(norm.ppf(np.arange(1, 8) / 8), g)
    a = (generator.random(SHAPE)[..., None] > law.cumsum(1)[g_bin][..., :-1]).sum(-1)
    rows = simulate(a, g)
    assert bits > 0.03
    for name, expected in (("mi", bits), ("mi_mates", 0.0), ("mi_excess", bits)):
        assert abs(rows[name].mean() - expected) < 4 * standard_error(rows[name]) + 5e-4, name


@pytest.mark.parametrize("levels", [0.0, 2.0])
def test_nothing_in_common_is_no_excess(levels: float, simulate: Callable[..., pl.DataFrame]) -> None:
    """a and g of no relation: mi_excess is about 0 on average, of either sign. So it is with levels of documents in
    both, where mi alone is not: few documents have something in common by chance.
    """
    generator = np.random.default_rng(1)
    of_document = (SHAPE[0], 1, 1, SHAPE[3])
    g = generator.standard_normal(SHAPE) + levels * generator.standard_normal(of_document)
    rate = 0.1 * np.exp(levels * generator.standard_normal(of_document) - levels)
    a = (generator.random(SHAPE) < rate) * generator.integers(1, 5, SHAPE)
    rows = simulate(a, g)
    mi, excess = rows["mi"], rows["mi_excess"]
    assert abs(excess.mean()) < 4 * standard_error(excess)
    assert excess.min() < 0 < excess.max()
    if levels:
        assert mi.mean() > 4 * standard_error(mi)
    else:
        assert abs(mi.mean()) < 4 * standard_error(mi) + 1e-4


def test_an_sae_without_quartiles_has_no_figure(simulate: Callable[..., pl.DataFrame]) -> None:
    """Its rows are there, NULL."""
    generator = np.random.default_rng(2)
    shape = (4, 2, 20, 3)
    rows = simulate(generator.integers(0, 5, shape), generator.standard_normal(shape), quartiles=False)
    assert len(rows) == 3
    assert rows["n_active"].min() > 0
    assert all(rows[name].null_count() == 3 for name in ("mi", "mi_mates", "mi_excess"))


def test_a_document_alone_has_no_mates(simulate: Callable[..., pl.DataFrame]) -> None:
    """No context is its own mate: mi stands alone, and mi_excess is NULL."""
    generator = np.random.default_rng(3)
    shape = (1, 40, 20, 3)
    rows = simulate(generator.integers(0, 5, shape), generator.standard_normal(shape))
    assert rows["mi"].null_count() == 0
    assert rows["mi_mates"].null_count() == rows["mi_excess"].null_count() == 3


@pytest.mark.parametrize(
    ("n", "active", "inactive"),
    [
        (20, [1] * 8 + [2] * 3 + [0] * 21, [1, 2, 3, 4, 0, 0, 2, 1]),
        (20, [0] * 32, [1, 2, 3, 4, 0, 0, 2, 1]),  # never active: nothing to know
        (32, [1] * 32, [0] * 8),  # active everywhere: no inactive token is needed
        (20, [1] * 8 + [0] * 24, [0] * 8),  # inactive tokens, and none of them sampled
        (0, [0] * 32, [0] * 8),
    ],
)
def test_the_views_algebra(
    n: int, active: list[int], inactive: list[int], tiny_warehouse: Path, tmp_path: Path
) -> None:
    """Empty bins add nothing; NULL where inactive tokens exist and none of them is sampled, or no token at all."""
    db = tmp_path / "copy.duckdb"
    shutil.copy(tiny_warehouse, db)
    with Warehouse(db, writable=True) as copy:
        key = "layer = 1 AND energy = 'nll' AND category = 'all' AND feature = 1"
        copy.sql(
            f"""
            UPDATE histogram_cells SET n_tokens = $n, active = $active, inactive = $inactive, mates_tokens = 32,
                mates_active = list_resize([]::BIGINT[], 32, 1)
            WHERE {key}
            """,
            n=n, active=active, inactive=inactive,
        )  # fmt: skip
        mi, mates, excess = copy.sql(f"SELECT mi, mi_mates, mi_excess FROM mutual_information WHERE {key}").fetchall()[
            0
        ]
    expected = estimate(np.array(active).reshape(4, 8), np.array(inactive), n)
    even = estimate(np.ones((4, 8), dtype=np.int64), np.zeros(8, dtype=np.int64), 32)
    assert mates == pytest.approx(even, abs=1e-12)
    assert mi == (None if expected is None else pytest.approx(expected, abs=1e-12))
    assert excess == (None if expected is None else pytest.approx(expected - even, abs=1e-12))
