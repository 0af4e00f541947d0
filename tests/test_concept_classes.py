"""Concept classes: rules against tokens labelled by hand, and features' statistics against plain loops."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from energy_lens import Warehouse
from energy_lens.ingest.sae.choosing import sae_folders
from energy_lens.ingest.sae.formats import load_sae
from energy_lens.ingest.statistics.finish import finish
from energy_lens.ingest.token_classes import CLASSES, token_classes

LENGTH = 32  # of the tiny warehouse's contexts


def labelled() -> list[tuple[str, list[tuple[str, str]]]]:
    spec = importlib.util.spec_from_file_location("labelled_tokens", Path(__file__).parent / "labelled_tokens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [
        ("".join(token for run in snippet for token in run[1:]), [(t, run[0]) for run in snippet for t in run[1:]])
        for snippet in module.SNIPPETS
    ]


# ------------------------------------------------------------------------------------------------ tokens


def test_rules_agree_with_labels() -> None:
    pairs = Counter()
    for _, tokens in labelled():
        found = token_classes([token for token, _ in tokens])
        pairs.update(zip((label for _, label in tokens), found, strict=True))
    assert pairs.total() >= 300
    for name in CLASSES:
        right = pairs[name, name]
        assert right / sum(n for (_, found), n in pairs.items() if found == name) > 0.95, name
        assert right / sum(n for (label, _), n in pairs.items() if label == name) > 0.95, name


@given(st.lists(st.text(max_size=6), max_size=40))
def test_any_text_has_a_class_for_each_token(texts: list[str]) -> None:
    found = token_classes(texts)
    assert len(found) == len(texts)
    assert set(found) <= set(CLASSES)
    for text, name in zip(texts, found, strict=True):
        assert (name == "whitespace") == (not text.strip())


@given(st.lists(st.sampled_from(["a", "(?:", "[", "]", "\\", "d", "+", "'", " ", "\n", "{", "2"]), max_size=200))
def test_what_looks_like_a_regex_takes_no_time(texts: list[str]) -> None:
    assert len(token_classes(texts)) == len(texts)


def test_classes_do_not_depend_on_where_tokens_are_cut() -> None:
    """Text by single characters: each has the class of the token around it, but for tokens of two kinds."""
    same = total = 0
    for text, tokens in labelled():
        by_token = [
            name for (token, _), name in zip(tokens, token_classes([t for t, _ in tokens]), strict=True) for _ in token
        ]
        by_character = token_classes(list(text))
        for character, one, other in zip(text, by_token, by_character, strict=True):
            if not character.isspace():
                total += 1
                same += one == other
    assert same / total > 0.97


# ------------------------------------------------------------------------------------------------ features


@pytest.fixture(scope="module")
def classes(tiny_warehouse: Path) -> pl.DataFrame:
    with Warehouse(tiny_warehouse) as warehouse:
        return warehouse.sql("SELECT * FROM feature_classes WHERE layer = 1 ORDER BY labels, class, feature").pl()


def by_loops(db: Path, layer: int) -> dict[tuple[str, str, int], dict[str, float]]:
    """z, counts and log odds by the definition, one context, class and feature after the other."""
    with Warehouse(db) as warehouse:
        tokens = warehouse.sql(
            """
            SELECT p.group_id, p.row, p.lane, c.document_id, l.token_id, t.class, l.included
            FROM token_layers AS l JOIN tokens AS t USING (run_id, token_id)
            JOIN plan AS p ON p.context_id = l.token_id // 32 JOIN contexts AS c ON c.context_id = p.context_id
            WHERE l.layer = $layer
            """,
            layer=layer,
        ).fetchall()
        active = warehouse.sql("SELECT feature, token_id FROM activations WHERE layer = $layer", layer=layer).fetchall()
    label = {token: name for *_, token, name, included in tokens if included}
    document = {token // LENGTH: own for *_, own, token, _, _ in tokens}
    rows: dict[tuple[int, int], dict[int, int]] = {}
    for group, row, lane, _, token, _, _ in tokens:
        rows.setdefault((group, row), {})[lane] = token // LENGTH
    at: dict[tuple[int, int], list[int]] = {}
    for feature, token in active:
        at.setdefault((feature, token // LENGTH), []).append(token)
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for name in CLASSES:
        sums: dict[tuple[str, int], list[float]] = {}
        for lanes in rows.values():
            contexts = [lanes[lane] for lane in sorted(lanes)]
            g = np.full((len(contexts), LENGTH), np.nan)
            for i, context in enumerate(contexts):
                for t in range(LENGTH):
                    if context * LENGTH + t in label:
                        g[i, t] = label[context * LENGTH + t] == name
            with np.errstate(invalid="ignore"):
                g -= np.nanmean(g, axis=1, keepdims=True)
            for i, context in enumerate(contexts):
                after = (i + 1) % len(contexts)
                others = [m for m in range(len(contexts)) if m != i]
                own_g, other_g = np.full((2, LENGTH), np.nan)
                for t in range(LENGTH):
                    mates = [g[m, t] for m in others if not np.isnan(g[m, t])]
                    rest = [g[m, t] for m in others if m != after and not np.isnan(g[m, t])]
                    if not np.isnan(g[i, t]) and len(mates) >= 3:
                        own_g[t] = g[i, t] - np.mean(mates)
                    if not np.isnan(g[i, t]) and not np.isnan(g[after, t]) and len(rest) >= 2:
                        other_g[t] = g[after, t] - np.mean(rest)
                for centred in (own_g, other_g):
                    if not np.isnan(centred).all():
                        centred -= np.nanmean(centred)
                for feature in range(64):
                    positions = [token % LENGTH for token in at.get((feature, context), [])]
                    sums.setdefault(("own", feature), []).append(float(np.nansum(own_g[positions])))
                    sums.setdefault(("mates", feature), []).append(float(np.nansum(other_g[positions])))
        for (labels, feature), values in sums.items():
            own_tokens = [token for (f, _), ts in at.items() if f == feature for token in ts]
            inside = [token for token in own_tokens if label[token] == name]
            everywhere = sum(own == name for own in label.values())
            a, b = len(inside) + 0.5, len(own_tokens) - len(inside) + 0.5
            c, d = everywhere - len(inside) + 0.5, len(label) - everywhere - (len(own_tokens) - len(inside)) + 0.5
            squares = sum(v * v for v in values)
            found[labels, name, feature] = {
                "z": sum(values) / math.sqrt(squares) if squares else math.nan, "n_in_class": len(inside),
                "log_odds": math.log(a * d / (b * c)), "n_active": len(own_tokens),
                "n_documents": len({document[token // LENGTH] for token in inside}),
                "p_naive": stats.hypergeom.sf(len(inside) - 1, len(label), everywhere, len(own_tokens)),
            }  # fmt: skip
    return found


def test_statistics_are_those_of_plain_loops(tiny_warehouse: Path, classes: pl.DataFrame) -> None:
    expected = by_loops(tiny_warehouse, 1)
    tested = 0
    for row in classes.iter_rows(named=True):
        own = expected[row["labels"], row["class"], row["feature"]]
        if row["labels"] == "own":
            for name in ("n_active", "n_in_class", "n_documents"):
                assert row[name] == own[name]
            for name in ("log_odds", "p_naive"):
                assert row[name] == pytest.approx(own[name], rel=1e-9, abs=1e-12)
        if row["z"] is not None:
            tested += 1
            assert row["z"] == pytest.approx(own["z"], rel=1e-9, abs=1e-9)
    assert tested > 100


def test_q_is_benjamini_hochbergs_over_the_features_of_a_class(classes: pl.DataFrame) -> None:
    for _, own in classes.drop_nulls("p_value").group_by("class", "labels"):
        np.testing.assert_allclose(own["q_value"], stats.false_discovery_control(own["p_value"]), rtol=1e-12)
        np.testing.assert_allclose(own["p_value"], 2 * stats.norm.sf(own["z"].abs()), rtol=1e-9)


def test_assignment_is_the_rule(classes: pl.DataFrame) -> None:
    for (_, _), own in classes.group_by("feature", "labels"):
        fitting = {
            row["class"]: row["log_odds"]
            for row in own.iter_rows(named=True)
            if row["q_value"] is not None and row["q_value"] < 0.05 and row["z"] > 0 and row["log_odds"] >= math.log(4)
            and row["share"] >= (0.05 if row["class"] in ("regex", "number") else 0.5) and row["n_documents"] >= 5
        }  # fmt: skip
        best = max(fitting, key=fitting.__getitem__) if fitting else None
        assert own.filter("is_assigned")["class"].to_list() == ([best] if best else [])


def test_views_show_what_was_assigned(tiny_warehouse: Path) -> None:
    with Warehouse(tiny_warehouse) as warehouse:
        features = warehouse.sql("SELECT layer, feature, class FROM features").pl()
        assigned = warehouse.sql(
            "SELECT layer, feature, class FROM feature_classes WHERE is_assigned AND labels = 'own'"
        ).pl()
        by_class = warehouse.sql("SELECT * FROM alignment_by_class ORDER BY ALL").pl()
        older_name = warehouse.sql("SELECT * FROM basins_by_class ORDER BY ALL").pl()
        specific = warehouse.sql(
            "SELECT count(*) FROM efas JOIN features USING (layer, feature) WHERE class IS NOT NULL "
            "AND energy = 'nll' AND gradient = 'decoder' AND category = 'all' AND q_specific < 0.05"
        ).value()
    joined = assigned.join(features, on=["layer", "feature"])
    assert (joined["class"] == joined["class_right"]).all()
    others = features.join(assigned, on=["layer", "feature"], how="anti")
    assert set(others["class"].unique()) <= {"general", None}
    whole = by_class.filter(pl.col("layer").is_null())
    assert whole["n_features"].sum() == features["class"].count()
    assert whole["n_significant"].sum() == specific
    assert by_class.equals(older_name)
    np.testing.assert_allclose(by_class.group_by("layer").agg(pl.sum("share_of_features"))["share_of_features"], 1)


def test_another_documents_labels_give_hardly_any_class(real_warehouse: Path) -> None:
    with Warehouse(real_warehouse) as warehouse:
        counts = dict(
            warehouse.sql("SELECT labels, count(*) FILTER (is_assigned) FROM feature_classes GROUP BY ALL").fetchall()
        )
        tested = warehouse.sql("SELECT count(*) FROM features WHERE class IS NOT NULL").value()
    assert counts["own"] > 0.3 * tested
    assert counts["mates"] <= 0.05 * tested


def test_a_run_from_before_there_were_classes_gets_them(
    tiny_warehouse: Path, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    db = tmp_path / "old.duckdb"
    shutil.copy(tiny_warehouse, db)
    queries = ("SELECT token_id, class FROM tokens ORDER BY ALL", "SELECT * FROM feature_classes ORDER BY ALL")
    with Warehouse(db, writable=True) as warehouse:
        before = [warehouse.sql(query).fetchall() for query in queries]
        warehouse.sql("UPDATE tokens SET class = NULL")
        warehouse.sql("DELETE FROM feature_classes")
        decoders = {sae.layer: sae.W_dec for sae in map(load_sae, sae_folders(tiny("llama").saes))}
        finish(lambda: nullcontext(warehouse), 1, decoders)
        assert [warehouse.sql(query).fetchall() for query in queries] == before
