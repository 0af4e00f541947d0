"""Finish: sparse sums against the dense definitions, what is stored for views against the rows it stands for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from energy_lens import Warehouse
from energy_lens.ingest.statistics import across_documents as dense
from energy_lens.ingest.statistics.document_moments import Documents
from energy_lens.ingest.statistics.intervals import PairSums, Totals, interval, mean_p
from energy_lens.ingest.statistics.pairs import Keys
from energy_lens.ingest.statistics.significance import hypergeometric_tail
from energy_lens.ingest.statistics.strata import Partition, Stratum
from energy_lens.sql import FOLDER

Floats = NDArray[np.float64]

D_MODEL = 6


class Sample:
    """Documents of two categories with few tokens, features that fire in some of them."""

    def __init__(self, seed: int, n_documents: int, n_features: int) -> None:
        generator = np.random.default_rng(seed)
        sizes = generator.integers(0, 30, n_documents)
        self.document = np.repeat(np.arange(n_documents), sizes)
        vectors = generator.standard_normal((len(self.document), D_MODEL)) + generator.standard_normal(D_MODEL)
        vectors *= np.exp(generator.standard_normal((n_documents, 1)))[self.document]
        rows = generator.standard_normal((n_features, D_MODEL))
        self.rows, self.g = -rows, -vectors @ rows.T
        fires = generator.random((n_documents, n_features)) < generator.choice([0.0, 0.3, 0.9, 1.0], n_features)
        shape = (len(self.document), n_features)
        self.a = np.maximum(generator.standard_normal(shape), 0) * fires[self.document]
        self.category = generator.integers(0, 2, n_documents)
        self.n_documents = n_documents
        self.gradients, self.norm2 = self.by_document(vectors), self.by_document((vectors**2).sum(1))
        self.n = self.by_document(np.ones(len(self.document)))
        active = self.a > 0
        self.n_active = self.by_document(active)
        # As by contexts: a document's Σg² and Σ‖∇‖² are known of a part of it, where the feature fires.
        part = generator.random((n_documents, 1)) * (self.n_active > 0)
        self.g2, self.covered = part * self.by_document(self.g**2), part * self.norm2[:, None]

    def by_document(self, values: NDArray[np.number] | NDArray[np.bool_]) -> Floats:
        sums = np.zeros((self.n_documents, *values.shape[1:]))
        np.add.at(sums, self.document, values)
        return sums


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_intervals_are_those_of_every_document_and_feature(
    seed: int, n_documents: int, n_features: int, by_category: bool
) -> None:
    """ΣI_d², its quantile and the t test equal `across_documents`, to nine digits, in every stratum."""
    sample = Sample(seed, n_documents, n_features)
    strata = [Stratum("code", "AB"), Stratum("math", "AB")] if by_category else [Stratum("all", "AB")]
    of_cells = np.array([0, 1] if by_category else [0, 0])[: sample.category.max() + 1]
    partition = Partition(strata, of_cells, of_cells[sample.category])
    run: Any = SimpleNamespace(cells=sample.category)
    feature, document = np.nonzero(sample.n_active.T)
    rows: Any = SimpleNamespace(pair_feature=feature, pair_document=document, n_features=n_features)
    documents = Documents(run, sample.n, sample.norm2, sample.gradients)
    moments = documents.moments(sample.rows, feature, document)
    keys = Keys.of(rows, partition)
    sums = {
        name: sample.by_document(values)[document, feature]
        for name, values in (("a", sample.a), ("a2", sample.a**2), ("ag", sample.a * sample.g))
    }
    norm2, share = sample.norm2[document], np.maximum(sample.norm2[document] - sample.covered[document, feature], 0)
    pairs = PairSums(n=sample.n[document], w=norm2, g2=sample.g2[document, feature], share=share, **sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        totals = {
            s: [x[partition.of_documents == s].sum(0) for x in (sample.n, sample.norm2)] for s in range(len(strata))
        }
        whole_g, whole_g2 = (
            np.stack([values[partition.of_documents == s].sum(0) for s in range(len(strata))])
            for values in (sample.by_document(sample.g), sample.by_document(sample.g**2))
        )
        place = keys.stratum, keys.feature
        found = interval(
            keys, partition, pairs,
            Totals(
                n=np.array([totals[s][0] for s in keys.stratum]), w=np.array([totals[s][1] for s in keys.stratum]),
                run_g=(sample.rows @ documents.mean)[keys.feature], g=whole_g[place], g2=whole_g2[place],
            ), moments,
        )  # fmt: skip
    values = sums["ag"]
    p = mean_p(
        keys, np.array([(sample.n[partition.of_documents == s] > 0).sum() for s in keys.stratum]).astype(float),
        *keys.sums(values, np.ones(len(values))), values, np.ones(len(values), dtype=bool),
    )  # fmt: skip
    for s in range(len(strata)):
        chosen = partition.of_documents == s
        if sample.n[chosen].sum() == 0:
            continue
        by_document = {name: sample.by_document(x)[chosen] for name, x in (
            ("a", sample.a), ("a2", sample.a**2), ("g", sample.g), ("ag", sample.a * sample.g)
        )}  # fmt: skip
        token_sums = dense.TokenSums(
            n=sample.n[chosen], norm2=sample.norm2[chosen], g2=sample.g2[chosen], covered=sample.covered[chosen],
            **by_document,
        )  # fmt: skip
        expected = dense.interval(token_sums, whole_g2[s])
        part = np.broadcast_to(sample.n[chosen, None] > 0, by_document["ag"].shape)
        expected_p = dense.mean_test(by_document["ag"], part)
        own = keys.stratum == s
        of = keys.feature[own]
        # One document, or equal a, leave rounding in place of an influence.
        sound = expected[0][of] > 1e-12
        np.testing.assert_allclose(found[0][own][sound], expected[0][of][sound], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found[1][own][sound], expected[1][of][sound], rtol=1e-8)
        np.testing.assert_allclose(p[own], expected_p[of], rtol=1e-8, atol=1e-300)


@given(st.data())
def test_the_hypergeometric_tail_is_scipys(data: st.DataObject) -> None:
    n_tokens = data.draw(st.integers(1, 100_000))
    n_class = data.draw(st.integers(0, n_tokens))
    n_active = np.array(data.draw(st.lists(st.integers(0, n_tokens), min_size=1, max_size=20)))
    n_in = np.array([data.draw(st.integers(0, min(int(n), n_class))) for n in n_active])
    expected = stats.hypergeom.sf(n_in - 1, n_tokens, n_class, n_active)
    found = hypergeometric_tail(n_in, n_tokens, n_class, n_active)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


# ------------------------------------------------------------------------------------------------ what views scan

#: Tables of the grain of tokens or finer.
SCANNED = {"activations", "energies", "gradients", "tokens", "token_layers"}

#: Public views whose rows are tokens or contexts themselves.
OF_TOKENS = {"token_places", "sampled_contexts"}


def tables_of(plan: Any) -> set[str]:
    """Tables that a plan in JSON reads, anywhere in it."""
    return set(re.findall(r'"Table": "(?:[^"]*\.)?([^".]+)"', json.dumps(plan)))


def test_no_view_of_layers_features_or_categories_scans_tokens(tiny_warehouse: Path) -> None:
    """docs/architecture.md: what scans them is stored at finish."""
    with Warehouse(tiny_warehouse) as warehouse:
        views = [
            name
            for (name,) in warehouse.sql(
                "SELECT view_name FROM duckdb_views() WHERE NOT internal AND schema_name = 'main'"
            ).fetchall()
        ]
        read = {}
        for view in views:
            explained = warehouse.sql(f'EXPLAIN (FORMAT json) SELECT * FROM "{view}"').fetchall()
            read[view] = tables_of(json.loads(explained[0][1]))
    assert read["token_places"] & SCANNED == {"tokens"}
    assert read["efas"] >= {"feature_statistics"}
    assert {view: tables & SCANNED for view, tables in read.items() if tables & SCANNED and view not in OF_TOKENS} == {}


@pytest.mark.parametrize("table", ["layer_tokens", "layer_energies", "layer_losses", "feature_activity"])
def test_what_is_stored_for_views_is_what_the_rows_say(table: str, tiny_warehouse: Path, tmp_path: Path) -> None:
    """As the migration fills it for runs that are there: by a scan of the rows themselves."""
    db = tmp_path / "copy.duckdb"
    shutil.copy(tiny_warehouse, db)
    migration = (FOLDER / "migrations" / "0012_marts.sql").read_text(encoding="utf-8")
    (statement,) = re.findall(rf"^INSERT INTO {table}\n.*?;\n", migration, re.MULTILINE | re.DOTALL)
    with Warehouse(db, writable=True) as warehouse:
        query = f"SELECT * FROM {table} ORDER BY ALL"
        found = warehouse.sql(query).fetchall()
        warehouse.sql(f"DELETE FROM {table}")
        warehouse.sql(statement)
        expected = warehouse.sql(query).fetchall()
    assert len(found) == len(expected) > 0
    for row, other in zip(found, expected, strict=True):
        for value, wanted in zip(row, other, strict=True):
            # DuckDB interpolates quantiles of FLOAT in FLOAT.
            assert value == (pytest.approx(wanted, rel=1e-6) if isinstance(wanted, float) else wanted)


def test_rounding_takes_no_correlation_beyond_1(tiny_warehouse: Path, tmp_path: Path) -> None:
    """Sums of two tokens that occur 27 times each: over the active ones a correlation of 1, and 2e-9 of rounding."""
    db = tmp_path / "copy.duckdb"
    shutil.copy(tiny_warehouse, db)
    sums = {
        "n_active": 54, "sum_a": 5994.414665222168, "sum_a2": 665526.425973221, "sum_ag": 87.73089076516331,
        "active_g": 0.7903102627024055, "active_g2": 0.011566488707084918,
    }  # fmt: skip
    with Warehouse(db, writable=True) as warehouse:
        assignments = ", ".join(f"{name} = ${name}" for name in sums)
        warehouse.sql(f"UPDATE feature_statistics SET {assignments}", **sums)
        found = warehouse.sql("SELECT DISTINCT score_active FROM efas_scores WHERE n_active = 54").fetchall()
    assert found == [(1.0,)]
