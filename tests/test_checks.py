"""The promises of a warehouse: kept by what ingest, interventions and attractors write, and each seen to be broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from energy_lens import Warehouse
from energy_lens.analysis.attractors.run import AttractorOptions, find_attractors
from energy_lens.analysis.interventions.run import InterventionOptions, intervene
from energy_lens.cli import main
from energy_lens.errors import ElwError
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.sql import statement
from energy_lens.warehouse.checks import check_names, promise, run_check, run_checks

#: The keys of these are DuckDB's to guard, or they have but one row.
BOOKKEEPING = {"schema_migrations", "schema_views"}


@pytest.fixture(scope="module")
def complete(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny warehouse with interventions and attractors: every table has rows."""
    db = tmp_path_factory.mktemp("complete") / "tiny.duckdb"
    shutil.copy(tiny_warehouse, db)
    find_attractors(db, AttractorOptions(tokens=300, target=3.0))
    options = InterventionOptions(layers=(1,), features=("top:4",), contexts=8, probes=1, shift=1, doses=(0.5, 2.0))
    intervene(db, options)
    return db


@pytest.fixture(scope="module")
def writable(complete: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """A copy, open to be spoilt in a transaction that is rolled back."""
    db = tmp_path_factory.mktemp("spoilt") / "spoilt.duckdb"
    shutil.copy(complete, db)
    with Warehouse(db, writable=True) as warehouse:
        yield warehouse


@pytest.fixture
def copied(tiny_warehouse: Path, tmp_path: Path) -> Callable[..., Path]:
    """copied(statement, …): a copy of the tiny warehouse that statements have changed."""

    def change(*statements: str) -> Path:
        db = tmp_path / "copy.duckdb"
        shutil.copy(tiny_warehouse, db)
        with Warehouse(db, writable=True) as warehouse:
            for statement in statements:
                warehouse.sql(statement)
        return db

    return change


def broken(db: Path) -> dict[str, str | None]:
    with Warehouse(db) as warehouse:
        return {outcome.check: outcome.first_broken for outcome in run_checks(warehouse) if outcome.n_broken != 0}


# ------------------------------------------------------------------------------------------------ kept


def test_a_finished_warehouse_keeps_its_promises(complete: Path) -> None:
    assert broken(complete) == {}


def test_a_new_warehouse_keeps_its_promises(tmp_path: Path) -> None:
    Warehouse(tmp_path / "new.duckdb", writable=True).close()
    assert broken(tmp_path / "new.duckdb") == {}


def test_runs_that_are_under_way_and_beside_each_other_keep_their_promises(
    tiny: Callable[..., Any], small_corpus: Path, tmp_path: Path
) -> None:
    """A part of a plan, of one layer and energy; then another run in the same file; then a corpus of one document."""
    model = tiny("gpt2")
    common = {"db": tmp_path / "runs.duckdb", "model": str(model.folder), "saes": (model.saes,), "dtype": "float32"}
    ingest([small_corpus], IngestOptions(**common, layers=(1,), energies=("nll",), context_length=64, max_tokens=500))
    assert broken(common["db"]) == {}
    ingest([small_corpus], IngestOptions(**common, context_length=32, max_tokens=2_000, probes=1))
    ingest(
        [sorted((small_corpus / "code").glob("*.txt"))[0]],
        IngestOptions(**common, energies=("attention",), context_length=32),
    )
    with Warehouse(common["db"]) as warehouse:
        assert warehouse.sql("SELECT count(*) FROM runs").value() == 3
    assert broken(common["db"]) == {}


def test_statistics_that_lag_break_nothing(copied: Callable[..., Path]) -> None:
    """They are of fewer tokens than are stored, and the next ingest brings them up."""
    db = copied("UPDATE runs SET stats_tokens = 1000", "UPDATE feature_statistics SET sum_a = sum_a * 2")
    assert "statistics_recomputed" not in broken(db)


# ------------------------------------------------------------------------------------------------ broken

ONE_TOKEN = "token_id = (SELECT min(token_id) FROM activations)"
STAGE = "INSERT INTO staged_groups SELECT 1, group_id, 'elsewhere', 9, 99, now() FROM"
CHECKS = {
    "staged_groups": [
        f"{STAGE} plan_groups WHERE group_id = 0",  # which is committed
        f"{STAGE} (VALUES (10_000)) AS t (group_id)",  # which is not planned
    ],
    "current_run": ["UPDATE runs SET is_current = false", "INSERT INTO runs BY NAME SELECT * FROM runs"],
    "rows_of_runs": ["UPDATE saes SET run_id = 7 WHERE layer = 1", "UPDATE attractor_settings SET run_id = 7"],
    "orphans": [
        "DELETE FROM documents WHERE document_id = 3",
        "DELETE FROM contexts WHERE context_id = 3",
        "DELETE FROM plan_groups WHERE group_id = 0",
        f"DELETE FROM tokens WHERE {ONE_TOKEN}",
        f"DELETE FROM token_layers WHERE {ONE_TOKEN}",
        "INSERT INTO document_aliases VALUES (1, 999, 'a')",
        "UPDATE energies SET token_id = 10_000_000 WHERE token_id = 5 AND energy = 'nll'",
    ],
    "committed_groups": [
        f"DELETE FROM tokens WHERE {ONE_TOKEN}",
        "UPDATE plan_groups SET committed_at = NULL WHERE group_id = 0",
        "UPDATE plan_groups SET n_tokens = n_tokens + 1 WHERE group_id = 0",
        "UPDATE plan_groups SET n_contexts = n_contexts + 1 WHERE group_id = 0",
        "DELETE FROM plan WHERE context_id = 3",
    ],
    "groups_are_of_one_kind": [
        "UPDATE documents SET category = 'poems' WHERE document_id = 3",
        "UPDATE documents SET half = CASE half WHEN 'A' THEN 'B' ELSE 'A' END WHERE document_id = 3",
        "UPDATE plan SET row = 0",
    ],
    "token_positions": [
        f"UPDATE tokens SET position = position + 1 WHERE {ONE_TOKEN}",
        "UPDATE contexts SET n_tokens = n_tokens - 1 WHERE context_id = 3",
        "UPDATE contexts SET n_tokens = 33 WHERE context_id = 3",
    ],
    "inclusion": [
        "UPDATE token_layers SET included = false WHERE counted AND token_id < 100",
        f"UPDATE token_layers SET reason = 'massive norm' WHERE {ONE_TOKEN}",
        "UPDATE token_layers SET reason = NULL WHERE reason = 'first token' AND layer = 1",
    ],
    "layers_are_read": [
        f"DELETE FROM token_layers WHERE layer = 2 AND {ONE_TOKEN}",
        "UPDATE runs SET layers = [1, 2, 3]",
        "UPDATE runs SET layers = [1]",
    ],
    "activations_positive": [
        f"UPDATE activations SET activation = 0 WHERE {ONE_TOKEN}",
        f"UPDATE activations SET activation = -1 WHERE {ONE_TOKEN}",
        f"UPDATE activations SET activation = 'nan' WHERE {ONE_TOKEN}",
        f"UPDATE activations SET g_attention = 'inf' WHERE {ONE_TOKEN}",
    ],
    "activations_included": [
        f"UPDATE token_layers SET included = false, counted = false, reason = 'special token' WHERE {ONE_TOKEN}",
        f"DELETE FROM token_layers WHERE {ONE_TOKEN}",
    ],
    "energies_of_runs": [
        "DELETE FROM run_energies WHERE energy = 'attention'",
        "UPDATE run_energies SET units = 'bits' WHERE energy = 'nll'",
        "UPDATE run_energies SET position = position + 1",
        "UPDATE runs SET energies = ['nll'], energy_units = ['nats']",
    ],
    "energies_complete": [
        f"DELETE FROM energies WHERE energy = 'hopfield' AND layer = 1 AND {ONE_TOKEN}",
        f"DELETE FROM gradients WHERE energy = 'nll' AND layer = 1 AND {ONE_TOKEN}",
        "DELETE FROM energies WHERE energy = 'tuned_lens'",
        "DELETE FROM energies WHERE energy = 'nll'",
        f"DELETE FROM energies WHERE energy = 'nll' AND {ONE_TOKEN}",
    ],
    "gradients_complete": [
        f"UPDATE activations SET g_nll = NULL WHERE layer = 1 AND {ONE_TOKEN}",
        "ALTER TABLE activations ADD COLUMN g_other FLOAT DEFAULT 1.0",
        "UPDATE activations SET g_hopfield = NULL",
    ],
    "losses": [
        f"UPDATE energies SET value = -0.1 WHERE energy = 'nll' AND {ONE_TOKEN}",
        f"UPDATE energies SET value = 'nan' WHERE energy = 'tuned_lens' AND {ONE_TOKEN}",
    ],
    "correlations": [
        "UPDATE feature_statistics SET sum_ag = 1e9 WHERE feature = 3 AND energy = 'nll' AND half = 'A'",
        "UPDATE predictor_statistics SET spearman = -1.01 WHERE validation = 'same'",
        "UPDATE feature_statistics SET cosine = 1.01 WHERE feature = 3 AND energy = 'nll'",
        "UPDATE feature_statistics SET sum_gc2 = sum_gc2 / 1e9 WHERE feature = 3 AND energy = 'hopfield'",
    ],
    "intervention_readings": [
        "UPDATE intervention_readings SET n_active = n_tokens + 1",
        "UPDATE intervention_readings SET run_id = 77",
        "DELETE FROM intervention_features",
        "UPDATE intervention_contexts SET measured_at = NULL WHERE batch = 0",
        "UPDATE intervention_readings SET cells = list_transform(cells, lambda n: n + 1)",
    ],
    "doses": [
        "DELETE FROM intervention_doses WHERE dose = 0.5 AND direction = 1",
        "DELETE FROM intervention_doses WHERE dose = 0",
        "DELETE FROM interventions WHERE direction = 2",
        "UPDATE intervention_settings SET doses = NULL",
        "UPDATE intervention_doses SET dose = 3 WHERE dose = 2",
    ],
    "p_and_q": [
        "UPDATE feature_statistics SET q_value = p_value / 2 WHERE p_value > 0",
        "UPDATE feature_statistics SET p_value = 1.5, q_value = 1.5 WHERE p_value > 0",
        "UPDATE feature_statistics SET q_value = NULL WHERE feature = 3",
        "UPDATE feature_statistics SET q_specific = p_specific / 2 WHERE p_specific > 0",
        "UPDATE feature_statistics SET q_documents = p_documents / 2 WHERE p_documents > 0",
        "UPDATE feature_classes SET q_value = -q_value WHERE q_value > 0",
        "UPDATE attractors SET label = 'a', label_p = 0.5, label_q = 0.4 WHERE attractor = 0",
    ],
    "cards": [
        "UPDATE activation_histogram SET counts = list_transform(counts, lambda n: n + 1) WHERE feature = 3",
        "UPDATE activation_intervals SET n_tokens = n_tokens + 1 WHERE feature = 3 AND \"interval\" = 2",
    ],
    "histograms": [
        "UPDATE histogram_cells SET n_tokens = n_tokens + 1 WHERE feature = 3",
        "UPDATE histogram_cells SET active = list_transform(active, lambda n: n + 1) WHERE feature = 3",
    ],
    "sums_over_categories": [
        "UPDATE feature_statistics SET n_active = n_active + 1 WHERE feature = 3 AND category = 'code'",
        "UPDATE feature_statistics SET sum_ag = sum_ag * (1 + 1e-4) WHERE category = 'all' AND energy = 'hopfield'",
        "DELETE FROM feature_statistics WHERE feature = 3 AND category = 'natural' AND gradient = 'discrete'",
        "DELETE FROM feature_statistics WHERE feature = 3 AND category = 'all' AND half = 'AB'",
    ],
    "sums_over_halves": [
        "UPDATE feature_statistics SET active_g2 = active_g2 * (1 + 1e-6) WHERE half = 'B' AND feature = 3",
        "DELETE FROM feature_statistics WHERE half = 'A' AND feature = 3",
    ],
    "sums_over_documents": [
        "UPDATE feature_documents SET sum_s = sum_s + 1 WHERE feature = 3",
        "DELETE FROM feature_documents WHERE feature = 3 AND energy = 'nll' AND layer = 1",
        "UPDATE feature_moments SET sum_s = -sum_s WHERE energy = 'hopfield'",
    ],
    "statistics_recomputed": [
        "UPDATE feature_statistics SET sum_a = sum_a * (1 + 1e-6), sum_a2 = sum_a2 * (1 + 1e-6)",
        "UPDATE feature_statistics SET sum_ag = -sum_ag WHERE gradient = 'discrete'",
        "UPDATE activations SET activation = activation * 1.01 WHERE layer = 1",
        "UPDATE activations SET g_nll = g_nll * 1.01 WHERE layer = 2",
        "DELETE FROM activations WHERE feature < 40",
        "DELETE FROM feature_statistics WHERE half = 'B' AND feature < 40",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "spoil"), [(check, spoil) for check, statements in CHECKS.items() for spoil in statements]
)
def test_a_broken_promise_is_found(check: str, spoil: str, writable: Warehouse) -> None:
    writable.sql("BEGIN TRANSACTION")
    try:
        writable.sql(spoil)
        outcome = run_check(writable, check)
    finally:
        assert writable.abandon_transaction()
    assert outcome.n_broken
    assert outcome.first_broken
    assert run_check(writable, check).n_broken == 0


def tables_with_columns(warehouse: Warehouse) -> dict[str, list[tuple[str, str]]]:
    columns: dict[str, list[tuple[str, str]]] = {}
    query = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
    tables = {name for (name,) in warehouse.sql("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()}
    for table, column, kind in warehouse.sql(query).fetchall():
        if table in tables - BOOKKEEPING:
            columns.setdefault(table, []).append((column, kind))
    return columns


def test_every_table_has_a_key(tmp_path: Path) -> None:
    """One row of any table breaks no key, the same row twice does, and the check names the table."""
    with Warehouse(tmp_path / "keys.duckdb", writable=True) as warehouse:
        for table, columns in tables_with_columns(warehouse).items():
            values = ", ".join(
                f"[]::{kind} AS \"{column}\"" if kind.endswith("[]")
                else f"'2026-01-01'::{kind} AS \"{column}\"" if kind == "TIMESTAMP"
                else f"'1'::{kind} AS \"{column}\"" for column, kind in columns
            )  # fmt: skip
            keys = [name for name in check_names() if name.startswith("keys_of_")]
            for n_rows in (1, 2):
                warehouse.sql(f"INSERT INTO {table} BY NAME SELECT {values}")
                outcomes = [run_check(warehouse, name) for name in keys]
                found = [outcome.first_broken or "" for outcome in outcomes if outcome.n_broken]
                assert len(found) == n_rows - 1, table
                assert all(text.startswith(f"table={table}, ") for text in found), found
            warehouse.sql(f"DELETE FROM {table}")


def test_every_table_of_runs_is_checked_for_them(writable: Warehouse) -> None:
    """A row of a run that the file lacks is found in whatever table it is."""
    named = statement("checks/rows_of_runs")
    columns = writable.sql("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
    tables = {name for (name,) in writable.sql("SELECT table_name FROM duckdb_tables() WHERE NOT internal").fetchall()}
    of_runs = {table for table, column in columns if column == "run_id"} & tables - {
        "runs",
        "run_energies",
        "intervention_readings",
    }
    assert len(of_runs) > 30
    assert {table for table in of_runs if f"'{table}'" not in named} == set()


def test_every_check_is_shown_to_fire() -> None:
    assert {name for name in check_names() if not name.startswith("keys_of_")} == set(CHECKS)


@pytest.mark.parametrize("check", check_names())
def test_a_promise_is_a_sentence(check: str) -> None:
    assert promise(check)[0].isupper()
    assert promise(check).endswith(".")
    assert promise(check).count(". ") == 0


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_lists_every_promise(tiny_warehouse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--db", str(tiny_warehouse), "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["check"], row["promise"]) for row in rows] == [(name, promise(name)) for name in check_names()]
    assert {(row["broken"], row["first_broken"]) for row in rows} == {(0, None)}
    assert err == f"{tiny_warehouse} keeps all {len(rows)} promises.\n"


def test_the_command_fails_with_a_sentence(copied: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What is broken, how often, and where first; the file stays as it is."""
    db = copied(f"UPDATE activations SET activation = -1 WHERE layer = 1 AND {ONE_TOKEN}")
    before = db.read_bytes()
    assert main(["check", "--db", str(db), "--format", "json"]) == 1
    out, err = capsys.readouterr()
    row = next(row for row in json.loads(out) if row["check"] == "activations_positive")
    assert row["broken"] == 4
    assert row["first_broken"].startswith("run_id=1, layer=1, feature=")
    assert f"elw: {db} breaks 2 of {len(check_names())} promises (activations_positive, statistics_recomputed)" in err
    assert err.count("\n") == 1
    assert db.read_bytes() == before
    assert main(["check", "--db", str(db)]) == 1
    assert "│ activations_positive" in capsys.readouterr().out


def test_an_older_file_is_checked_for_what_it_can_answer(
    copied: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    db = copied("DROP TABLE run_energies", "DELETE FROM schema_migrations WHERE number >= 9")
    assert main(["check", "--db", str(db), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    unchecked = [row["check"] for row in json.loads(out) if row["broken"] is None]
    assert unchecked == ["energies_complete", "energies_of_runs", "gradients_complete", "keys_of_runs", "losses"]
    assert "run elw migrate" in err
    assert f"Not checked, since an older file lacks what it takes: {', '.join(unchecked)}." in err
    Warehouse(db, writable=True).close()
    assert broken(db) == {}


def test_a_file_that_lacks_a_part_of_its_schema_is_a_sentence(copied: Callable[..., Path]) -> None:
    db = copied("DROP TABLE run_energies")
    with Warehouse(db) as warehouse, pytest.raises(ElwError, match="lacks a part of its schema"):
        run_checks(warehouse)


# ------------------------------------------------------------------------------------------------ SmolLM2


@pytest.mark.real
def test_a_real_warehouse_keeps_its_promises(real_warehouse: Path) -> None:
    assert broken(real_warehouse) == {}
