"""`elw doctor`: what is well is ok, what is not is said with its remedy, and nothing is made or changed."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from energy_lens.analysis.doctor import contents, machine, storage
from energy_lens.analysis.doctor.finding import Finding, Verdict, carried_out, size
from energy_lens.analysis.doctor.run import examine
from energy_lens.cli.main import main
from energy_lens.ingest.model.converted import write_record
from energy_lens.warehouse.checks import check_names
from energy_lens.warehouse.database import Warehouse, ingest_lock

#: Tables that grow with tokens or activations, which a quick check must not read.
LARGE = ("activations", "gradients", "energies", "token_layers", "tokens", "interventions", "intervention_readings")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "elw.duckdb"
    Warehouse(path, writable=True).close()
    return path


@pytest.fixture
def db(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty warehouse, and an empty cache."""
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ELW_WAREHOUSE", raising=False)
    return Path(shutil.copy(template, tmp_path))


def of(db: Path, **options: Any) -> dict[str, list[Finding]]:
    """Findings on a warehouse by their subject."""
    found: dict[str, list[Finding]] = {}
    for finding in contents.warehouse(db, is_named=True, checks=options.pop("checks", "quick"), **options):
        found.setdefault(finding.subject, []).append(finding)
    return found


def test_a_finished_warehouse_is_well(
    tiny_warehouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    before = sorted(tiny_warehouse.parent.iterdir()), tiny_warehouse.stat().st_mtime_ns
    code = main(["doctor", "--db", str(tiny_warehouse), "--checks", "all", "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    problems = [row for row in rows if row["verdict"] == "problem" and not row["subject"].startswith("disk")]
    assert problems == []
    assert code == (1 if any(row["verdict"] == "problem" for row in rows) else 0)
    subjects = {row["subject"] for row in rows}
    assert subjects >= {"versions", "processor", "cache", "locks", "warehouse", "schema", "runs", "promises"}
    assert any(f"{len(check_names())} were checked" in row["finding"] for row in rows)
    assert (sorted(tiny_warehouse.parent.iterdir()), tiny_warehouse.stat().st_mtime_ns) == before
    assert not (tmp_path / "cache").exists()


def test_every_problem_has_a_remedy_and_no_network_is_asked(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    (db.parent / "cache").write_text("a file where the folder would be")
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql("INSERT INTO tokens SELECT 7, 1, 1, 1, 'a', NULL")
    findings = list(examine(db))
    problems = [finding for finding in findings if finding.verdict is Verdict.PROBLEM]
    assert {"cache", "left rows"} <= {finding.subject for finding in problems}
    assert all(finding.remedy for finding in problems)
    assert next(each for each in problems if each.subject == "left rows").remedy == "elw runs --delete 7"


def test_a_file_that_is_missing_is_a_problem_only_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ELW_WAREHOUSE", raising=False)
    monkeypatch.setenv("ELW_CACHE", str(tmp_path / "cache"))
    (unnamed,) = contents.warehouse(Path("elw.duckdb"), is_named=False, checks="quick")
    assert unnamed.verdict is Verdict.NOTE
    assert main(["doctor", "--db", "none.duckdb", "--format", "csv"]) == 1
    assert "There is no warehouse at" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["text", "other", "newer"])
def test_a_file_that_does_not_open_is_a_problem(what: str, db: Path) -> None:
    if what == "text":
        db.write_text("not a database " * 1000)
    elif what == "other":
        db.unlink()
        with duckdb.connect(str(db)) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS x")
    else:
        with duckdb.connect(str(db)) as connection:
            connection.execute("INSERT INTO schema_migrations VALUES (9999, 'later', now()::TIMESTAMP)")
    (finding,) = of(db)["warehouse"]
    assert finding.verdict is Verdict.PROBLEM
    assert finding.remedy


def test_an_older_file_is_a_note(db: Path) -> None:
    with duckdb.connect(str(db)) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE number = (SELECT max(number) FROM schema_migrations)")
    (finding,) = of(db)["schema"]
    assert finding.verdict is Verdict.NOTE
    assert finding.remedy is not None
    assert "elw migrate" in finding.remedy


def test_an_unfinished_run_and_a_broken_promise_are_said(tiny_warehouse: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tiny_warehouse, tmp_path / "copy.duckdb"))
    with Warehouse(path, writable=True) as warehouse:
        warehouse.sql("UPDATE runs SET stats_tokens = stats_tokens - 1, is_current = false")
    found = of(path)
    assert found["unfinished run"][0].verdict is Verdict.NOTE
    assert found["runs"][0].remedy == "elw runs --use ID"
    assert found["promise"][0].verdict is Verdict.PROBLEM
    assert found["promise"][0].said.startswith("current_run:")
    assert "promise" not in of(path, checks="none")


def test_whoever_writes_is_named(db: Path) -> None:
    with ingest_lock(db, "elw ingest my-corpus/"):
        found = [finding for finding in storage.locks(db) if finding.subject == "writer"]
        assert len(found) == 1
        assert found[0].said.startswith(f"elw ingest my-corpus/ (process {os.getpid()})")
    assert [finding.subject for finding in storage.locks(db)] == ["locks"]


def test_a_damaged_copy_of_a_model_is_found(db: Path, tmp_path: Path) -> None:
    for name in ("whole", "damaged", "older"):
        folder = tmp_path / "cache" / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        if name != "older":
            write_record(folder, "ab" * 32)
    (tmp_path / "cache" / "models" / "damaged" / "model.safetensors").write_bytes(b"weigh")
    verdicts = {each.said.split()[0]: each.verdict for each in storage.cache() if each.subject == "copy of a model"}
    assert verdicts == {"whole": Verdict.OK, "damaged": Verdict.PROBLEM, "older": Verdict.NOTE}


def test_a_broken_library_does_not_end_the_doctor(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(machine, "processor", broken)
    findings = list(examine(db))
    (found,) = [finding for finding in findings if finding.subject == "processor"]
    assert found.verdict is Verdict.PROBLEM
    assert "libtorch.so" in found.said
    assert any(finding.subject == "warehouse" for finding in findings)
    assert [each.verdict for each in carried_out("x", lambda: iter(()))] == []


def test_quick_checks_read_no_large_table() -> None:
    from energy_lens.sql import statement

    assert set(contents.QUICK_CHECKS) <= set(check_names())
    for name in contents.QUICK_CHECKS:
        text = "\n".join(line for line in statement(f"checks/{name}").splitlines() if not line.startswith("--"))
        words = text.replace("(", " ").replace(",", " ").split()
        read = {after for word, after in itertools.pairwise(words) if word.upper() in ("FROM", "JOIN")}
        assert read.isdisjoint(LARGE), name


def test_sizes_are_in_powers_of_ten() -> None:
    assert [size(n) for n in (0, 999, 1_000, 163_590_144, 2.5e9)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "163.6 MB",
        "2.5 GB",
    ]


def test_flags_are_read_where_the_system_says_them() -> None:
    assert all(flag == flag.strip() and flag for flag in machine.cpu_flags())
