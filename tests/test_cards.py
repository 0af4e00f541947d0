"""What cards show of features equals what plain formulas make of the stored rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from energy_lens.analysis.feature_cards import build_cards
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.model.loading import load_model
from energy_lens.ingest.model.logit_weights import final_gain, summaries
from energy_lens.ingest.sae.choosing import choose_saes
from energy_lens.ingest.statistics.cards import CARDS
from energy_lens.ingest.statistics.feature_examples import N_BINS, N_INTERVALS, N_OF_INTERVAL, N_TOP
from energy_lens.ingest.statistics.feature_neighbours import FEWEST_TOGETHER, N_NEAREST, nearest
from energy_lens.reports.cards.reading import Window, read_card, read_cards
from energy_lens.tests.conftest import Tiny
from energy_lens.warehouse.database import Warehouse

#: Tables of cards that come from the run's own rows, and those that come from the model.
TABLES = (*CARDS, "feature_logits", "logit_histogram")


@pytest.fixture(scope="module")
def rows(tiny_warehouse: Path) -> pl.DataFrame:
    """Activations of the run with their tokens."""
    with Warehouse(tiny_warehouse) as warehouse:
        return warehouse.sql(
            "SELECT a.layer, a.feature, a.token_id, a.activation, t.text, t.vocabulary_id, p.context_id "
            "FROM activations AS a JOIN tokens AS t USING (run_id, token_id) "
            "JOIN token_places AS p USING (run_id, token_id) ORDER BY ALL"
        ).pl()


# ------------------------------------------------------------------------------------------------ examples


def test_histograms_are_those_of_numpy(rows: pl.DataFrame, tiny_warehouse: Path) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        stored = warehouse.sql("SELECT * FROM activation_histogram").pl()
    assert len(stored) == rows.select("layer", "feature").n_unique() > 50
    for row in stored.iter_rows(named=True):
        a = rows.filter(layer=row["layer"], feature=row["feature"])["activation"].to_numpy().astype(np.float64)
        assert (row["low"], row["high"]) == (a.min(), a.max())
        if row["low"] < row["high"]:
            expected, edges = np.histogram(a, N_BINS, (a.min(), a.max()))
            # A value within rounding of an edge may be on either side of it.
            near = (np.abs(a[:, None] - edges[1:-1]) < 1e-9 * a.max()).sum()
            assert np.abs(np.cumsum(row["counts"]) - np.cumsum(expected)).sum() <= near
        assert sum(row["counts"]) == len(a)


def test_examples_are_the_strongest_and_some_of_every_strength(rows: pl.DataFrame, tiny_warehouse: Path) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        stored = warehouse.sql("SELECT * FROM activation_intervals").pl()
    contexts = dict(rows.select("token_id", "context_id").iter_rows())
    for (layer, feature), intervals in stored.group_by("layer", "feature"):
        of_feature = rows.filter(layer=layer, feature=feature)
        activation = dict(of_feature.select("token_id", "activation").iter_rows())
        largest = of_feature["activation"].max()
        by_context = of_feature.sort("activation", "token_id", descending=[True, False]).unique(
            "context_id", keep="first", maintain_order=True
        )
        assert intervals.sort("interval")["interval"].to_list() == list(range(N_INTERVALS + 1))
        for row in intervals.iter_rows(named=True):
            told = row["token_ids"]
            assert len({contexts[token] for token in told}) == len(told)
            strengths = [activation[token] for token in told]
            assert strengths == sorted(strengths, reverse=True)
            if row["interval"] == 0:
                assert told == by_context["token_id"].head(N_TOP).to_list()
                assert row["n_tokens"] == len(of_feature)
                assert row["low"] == strengths[-1]
            else:
                a = of_feature["activation"].to_numpy().astype(np.float64)
                place = np.minimum((a / largest * N_INTERVALS).astype(int), N_INTERVALS - 1) + 1
                inside = of_feature.filter(place == row["interval"])
                assert row["n_tokens"] == len(inside)
                assert set(told) <= set(inside["token_id"])
                assert len(told) == min(N_OF_INTERVAL, inside["context_id"].n_unique())


def test_which_examples_are_drawn_depends_on_nothing_but_tokens_and_seed(
    tiny_warehouse: Path, tiny: Callable[[str], Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into other slices and read anew, the same; and a build of an older run equals the finish."""
    db = tmp_path / "copy.duckdb"
    shutil.copy(tiny_warehouse, db)
    with Warehouse(db, writable=True) as warehouse:
        before = {table: warehouse.sql(f"SELECT * FROM {table} ORDER BY ALL").pl() for table in TABLES}
        for table in TABLES:
            warehouse.sql(f"DELETE FROM {table}")
    with Warehouse(db) as warehouse, pytest.raises(ElwError, match="elw features build"):
        read_cards(warehouse, 1, [0])
    monkeypatch.setattr("energy_lens.ingest.statistics.activations.SLICE_ACTIVATIONS", 37)
    built = build_cards(db)
    assert built.n_features == before["activation_histogram"].height
    with Warehouse(db) as warehouse:
        for table, expected in before.items():
            found = warehouse.sql(f"SELECT * FROM {table} ORDER BY ALL").pl()
            if table in ("feature_logits", "logit_histogram"):
                assert found.height == expected.height
            else:
                assert found.equals(expected), table


# ------------------------------------------------------------------------------------------------ tokens, neighbours


def test_tokens_are_those_it_fires_on_most_often(rows: pl.DataFrame, tiny_warehouse: Path) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        stored = warehouse.sql("SELECT * EXCLUDE (run_id) FROM feature_tokens ORDER BY layer, feature, place").pl()
        included = warehouse.sql(
            "SELECT l.layer, t.vocabulary_id, count(*) AS n FROM token_layers AS l "
            "JOIN tokens AS t USING (run_id, token_id) WHERE l.included GROUP BY ALL"
        ).pl()
    expected = (
        rows.group_by("layer", "feature", "vocabulary_id")
        .agg(n_active=pl.len(), mean_activation=pl.col("activation").cast(pl.Float64).mean(), text=pl.first("text"))
        .join(included, on=["layer", "vocabulary_id"])
        .sort("layer", "feature", "n_active", "mean_activation", "vocabulary_id",
              descending=[False, False, True, True, False])
        .group_by("layer", "feature", maintain_order=True).head(10)
    )  # fmt: skip
    assert stored["n_active"].to_list() == expected["n_active"].to_list()
    assert stored["n_tokens"].to_list() == expected["n"].to_list()
    np.testing.assert_allclose(stored["mean_activation"], expected["mean_activation"], rtol=1e-12)


def test_neighbours_are_those_of_dense_matrices() -> None:
    random = np.random.default_rng(3)
    n_tokens, n_features = 400, 60
    active = random.random((n_tokens, n_features)) < random.uniform(0.01, 0.2, n_features)
    active[:, 7] = False  # never fires, and is nobody's neighbour
    active[:, 9] = active[:, 8]
    decoder = random.normal(size=(n_features, 16))
    decoder[9] = 2 * decoder[8]
    feature, place = np.nonzero(active.T)
    found = nearest(feature.astype(np.int32), place.astype(np.int32), decoder, n_tokens, n_included=n_tokens)
    both = active.T.astype(int) @ active.astype(int)
    n = active.sum(0)
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "decoder_cosine": unit @ unit.T,
            "jaccard": both / (n[:, None] + n - both),
            "pmi": np.where(both >= FEWEST_TOGETHER, np.log2(both * n_tokens / np.outer(n, n)), -np.inf),
        }
    values["jaccard"][both == 0] = -np.inf
    for measure, matrix in values.items():
        matrix[:, n == 0] = -np.inf
        np.fill_diagonal(matrix, -np.inf)
        for row in np.flatnonzero(n):
            told = found.filter(feature=row, measure=measure)
            expected = np.sort(matrix[row])[::-1][:N_NEAREST]
            expected = expected[np.isfinite(expected)]
            np.testing.assert_allclose(told["value"], expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(matrix[row][told["neighbour"].to_numpy()], expected, rtol=1e-5, atol=1e-6)
            assert told["n_both"].to_list() == both[row][told["neighbour"].to_numpy()].tolist()
    assert found.filter(feature=8, measure="decoder_cosine", place=1)["neighbour"].to_list() == [9]


def test_a_layer_with_one_feature_or_none_has_no_neighbours() -> None:
    nobody = np.empty(0, dtype=np.int32)
    assert len(nearest(nobody, nobody, np.ones((4, 3)), 10, 10)) == 0
    alone = np.zeros(6, dtype=np.int32)
    assert len(nearest(alone, np.arange(6, dtype=np.int32), np.ones((4, 3)), 10, 10)) == 0


# ------------------------------------------------------------------------------------------------ logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_logits_are_the_decoder_row_through_the_norms_gain_and_the_unembedding(
    architecture: str, tiny: Callable[[str], Tiny]
) -> None:
    model = load_model(str(tiny(architecture).folder))
    torch.manual_seed(0)
    with torch.no_grad():
        model.final_norm.weight.copy_(torch.rand(model.d_model) + 0.5)
    gain, is_centred = final_gain(model)
    torch.testing.assert_close(gain, model.final_norm.weight.detach(), rtol=1e-5, atol=1e-6)
    assert is_centred is isinstance(model.final_norm, torch.nn.LayerNorm)
    directions = torch.randn(300, model.d_model)  # more than a block
    moved = directions - directions.mean(1, keepdim=True) if is_centred else directions
    W_U = model.unembedding.weight.detach()[: len(model.tokenizer)]
    expected = (moved * model.final_norm.weight) @ W_U.T
    expected = expected - expected.mean(1, keepdim=True)
    parts = list(summaries(model, directions, 10, N_BINS))
    top, bottom = expected.topk(10), expected.topk(10, largest=False)
    torch.testing.assert_close(
        torch.from_numpy(np.concatenate([part.top for part in parts])), top.values, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        torch.from_numpy(np.concatenate([part.bottom for part in parts])), bottom.values, rtol=1e-4, atol=1e-5
    )
    counts = np.concatenate([part.counts for part in parts])
    assert counts.sum(1).tolist() == [len(W_U)] * 300
    row = expected[0].numpy()
    assert np.abs(np.cumsum(counts[0]) - np.cumsum(np.histogram(row, N_BINS)[0])).max() <= 1  # by rounding on an edge


def test_they_say_what_a_small_step_along_the_row_does_to_logits(tiny: Callable[[str], Tiny]) -> None:
    """At a residual of root mean square 1 to which the row is orthogonal: the derivative itself."""
    model = load_model(str(tiny("llama").folder))
    torch.manual_seed(1)
    x = torch.randn(model.d_model)
    x /= x.square().mean().sqrt()
    row = torch.randn(model.d_model)
    row -= x * (row @ x) / (x @ x)
    step = 1e-2  # to third order in it, and to float32's rounding

    def logits(at: torch.Tensor) -> torch.Tensor:
        return model.logits(model.final_norm(at[None, None]))[0, 0]

    with torch.no_grad():
        slope = (logits(x + step * row) - logits(x - step * row)) / (2 * step)
        slope = (slope - slope[: len(model.tokenizer)].mean())[: len(model.tokenizer)]
        (summary,) = summaries(model, row[None], 10, N_BINS)
    torch.testing.assert_close(torch.from_numpy(summary.top[0]), slope.topk(10).values, rtol=1e-3, atol=1e-3)


def test_stored_logits_are_those_of_the_features_that_fire(tiny_warehouse: Path, tiny: Callable[[str], Tiny]) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        stored = warehouse.sql("SELECT * FROM feature_logits ORDER BY layer, feature, direction, place").pl()
        fires = warehouse.sql("SELECT layer, feature FROM feature_activity ORDER BY ALL").fetchall()
        name, sources = warehouse.sql(
            "SELECT r.model, list(s.source ORDER BY s.layer) "
            "FROM current_run AS r JOIN saes AS s USING (run_id) GROUP BY ALL"
        ).fetchone()
    assert stored.select("layer", "feature").unique().sort("layer", "feature").rows() == fires
    model = load_model(name)
    saes = choose_saes(name, None, tuple(Path(source) for source in sources))
    layer, feature = fires[3]
    (summary,) = summaries(model, saes[layer].W_dec[feature][None], 10, N_BINS)
    told = stored.filter(layer=layer, feature=feature, direction="promoted")
    np.testing.assert_allclose(told["logit"], summary.top[0], rtol=1e-4, atol=1e-6)
    assert told["vocabulary_id"].to_list() == summary.top_ids[0].tolist()


# ------------------------------------------------------------------------------------------------ reading


def test_a_card_is_what_the_tables_say(tiny_warehouse: Path) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        layer, feature, n_active = warehouse.sql(
            "SELECT layer, feature, n_active FROM features ORDER BY n_active DESC, layer, feature LIMIT 1"
        ).fetchone()
        card = read_card(warehouse, layer, feature, window=Window(before=5, after=3))
        energies = warehouse.sql("SELECT energies FROM current_run").value()
        for example in card.examples:
            stored = dict(
                warehouse.sql(
                    "SELECT token_id, activation FROM activations WHERE layer = $l AND feature = $f", l=layer, f=feature
                ).fetchall()
            )
            first = example.token_id - example.mark
            assert list(example.activations) == [stored.get(first + i, 0) for i in range(len(example.texts))]
            assert example.mark == min(5, example.position)
            assert [g is None for g in example.gradients] == [a == 0 for a in example.activations]
            texts = warehouse.sql(
                "SELECT text FROM tokens WHERE token_id BETWEEN $a AND $b ORDER BY token_id",
                a=first, b=first + len(example.texts) - 1,
            ).fetchall()  # fmt: skip
            assert [text for (text,) in texts] == list(example.texts)
    assert card.facts["n_active"] == n_active
    assert {row["energy"] for row in card.scores_of("decoder")} == set(energies)
    assert len(card.examples_of(0)) == min(N_TOP, len({example.context_id for example in card.examples_of(0)}))
    assert all(card.parts[part] for part in ("halves", "logits", "tokens", "neighbours", "classes"))


def test_many_cards_are_each_as_one_alone(tiny_warehouse: Path) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        features = [f for (f,) in warehouse.sql("SELECT feature FROM features WHERE layer = 1 LIMIT 5").fetchall()]
        together = read_cards(warehouse, 1, features)
        assert {feature: read_card(warehouse, 1, feature) for feature in features} == together


def test_features_that_are_not_there_are_told(tiny_warehouse: Path) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        with pytest.raises(UsageError, match=r"has no SAE at layer 77.*; it has layers 1, 2"):
            read_card(warehouse, 77, 0)
        with pytest.raises(UsageError, match="has features 0 to"):
            read_card(warehouse, 1, 10**6)
        with pytest.raises(UsageError, match="has no energy heat; it has nll"):
            read_card(warehouse, 1, 0, energy="heat")


def test_an_empty_warehouse_has_no_cards(tmp_path: Path) -> None:
    db = tmp_path / "new.duckdb"
    Warehouse(db, writable=True).close()
    with Warehouse(db) as warehouse, pytest.raises(ElwError, match="holds no run"):
        read_cards(warehouse, 1, [0])
