"""`elw merge`: whatever sources a run's groups come from, the tables are those of one plain ingest; or one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_lens.analysis.doctor import contents
from energy_lens.analysis.merging import merge
from energy_lens.cli.main import main
from energy_lens.errors import ElwError, UsageError, WarehouseError
from energy_lens.ingest.model import loading
from energy_lens.ingest.pipeline import IngestOptions, ingest
from energy_lens.ingest.statistics.finish import FILLED
from energy_lens.warehouse.checks import check_names, run_check
from energy_lens.warehouse.database import LockedError, Warehouse, ingest_lock
from energy_lens.warehouse.digests import PlanDigests, calibration_sha256, plan_digests
from energy_lens.warehouse.merging import taking
from energy_lens.warehouse.merging.run import Merge
from energy_lens.warehouse.merging.sources import WarehouseSource
from energy_lens.warehouse.merging.taking import Target, take
from energy_lens.warehouse.physical_order import SORTED_BY
from energy_lens.warehouse.plan_tables import PLAN_TABLES, read_plan
from energy_lens.warehouse.shards import Shard, deal
from energy_lens.warehouse.staging.groups import StageHeader, stage_group, stage_plan
from tests.test_ingest import assert_equal_tables, tables


@dataclass(frozen=True)
class House:
    """A run, planned once and ingested in one piece, and all that its groups can be had from."""

    options: IngestOptions  #: of the ingest in one piece
    texts: Path
    planned: Path  #: the run as --plan-only leaves it
    expected: Any  #: the tables of the whole run
    identity: str
    context_length: int
    n_tokens: dict[int, int]  #: by group_id
    shards: dict[str, list[int]]  #: groups of each shard of two, three and seven
    rows: dict[int, dict[str, pl.DataFrame]]  #: of each group, by table
    prints: dict[str, dict[int, tuple[int, int]]]  #: rows and a sum of their hashes, by table and group
    digests: PlanDigests
    calibration: str
    cpu: str  #: what computed the groups
    root: Path

    @property
    def whole(self) -> Path:
        return self.options.db

    @property
    def groups(self) -> list[int]:
        return list(self.n_tokens)

    def file(self, groups: Sequence[int], path: Path, shard: str | None = None) -> Path:
        """A warehouse with these groups of the run and no statistics, as an ingest of a shard leaves it."""
        shutil.copy(self.planned, path)
        target = Target(path, 1, self.identity, self.context_length, self.n_tokens)
        take(target, WarehouseSource(self.whole), groups, lambda *_: None)
        with Warehouse(path, writable=True) as warehouse:
            warehouse.run("ingest/record_shard", run=1, shard=shard)
        return path

    def stage(self, groups: Iterable[int], folder: Path, with_plan: bool = True, **changes: Any) -> Path:
        """A stage with these groups, as an ingest leaves it; folders of groups are links to those that are there."""
        header = StageHeader(self.identity, self.digests.sha256, self.calibration, 0, "", 0, self.cpu)
        if with_plan:
            with Warehouse(self.planned) as warehouse:
                plan = read_plan(warehouse, 1)
            names = ("identity", "plan_sha256", "calibration_sha256")
            stage_plan(str(folder), {name: getattr(header, name) for name in names}, plan)
        for group in groups:
            own = {"group_id": group, "group_sha256": self.digests.groups[group], "n_tokens": self.n_tokens[group]}
            stage_group(str(folder), replace(header, **{**own, **changes}), self.rows[group])
        return folder

    def held(self, db: Path, groups: Iterable[int]) -> None:
        """Assert that a file holds the rows of these groups to the last bit, each once, and no others."""
        groups = sorted(groups)
        with Warehouse(db) as warehouse:
            rows = warehouse.sql("SELECT group_id FROM plan_groups WHERE committed_at IS NOT NULL ORDER BY ALL")
            assert [group for (group,) in rows.fetchall()] == groups
            for table in SORTED_BY:
                found = warehouse.run_formatted("compact/fingerprint", {"table": table}).fetchall()[0]
                expected = [self.prints[table].get(group, (0, 0)) for group in groups]
                assert (found[0], found[1] or 0) == (sum(n for n, _ in expected), sum(h for _, h in expected)), table


def _with_groups(warehouse: Warehouse, table: str) -> str:
    """A query of a table's rows, each as a struct, with the groups that they are of."""
    if "group_id" in warehouse.sql(f"SELECT * FROM {table} LIMIT 0").columns:
        return f"SELECT t.group_id AS of_group, t FROM {table} AS t"
    return f"SELECT p.group_id AS of_group, t FROM {table} AS t JOIN plan AS p ON p.context_id = t.token_id // 16"


def _rows(warehouse: Warehouse, table: str) -> dict[int, pl.DataFrame]:
    """The rows of each group in a table, as the ingest hands them to be stored."""
    rows = warehouse.sql(f"SELECT of_group, t.* FROM ({_with_groups(warehouse, table)})").pl()
    return {group: frame.drop("of_group") for (group,), frame in rows.partition_by("of_group", as_dict=True).items()}


def _prints(warehouse: Warehouse, table: str) -> dict[int, tuple[int, int]]:
    query = f"SELECT of_group, count(*), sum(hash(t)::HUGEINT) FROM ({_with_groups(warehouse, table)}) GROUP BY ALL"
    return {group: (n_rows, hashes) for group, n_rows, hashes in warehouse.sql(query).fetchall()}


# ------------------------------------------------------------------------------------------------ the how-to's commands


def on_page(pattern: str) -> str:
    """What stands on the page about Slurm."""
    page = (Path(__file__).parent.parent / "docs" / "how-to" / "slurm.md").read_text(encoding="utf-8")
    found = re.search(pattern, page, re.DOTALL)
    assert found is not None, pattern
    return found[1]


def elw_of(options: IngestOptions) -> Callable[[list[str]], int]:
    """`elw` for a script: the command line in this process, an ingest with the model and SAEs of some options."""
    more = [
        f"--model={options.model}", *(f"--sae={folder}" for folder in options.saes), "--layers=1", "--context=16",
        "--dtype=float32", "--store-gradients",
    ]  # fmt: skip
    return lambda words: main([*words, *(more if words[0] == "ingest" else [])])


#: Hands a script's calls of `elw` to this process, which has everything imported.
FORWARDER = """#!/bin/bash
printf '%s\\n' "$PWD" "$@" '' > "$CALLS"
read -r code < "$ANSWERS"
exit "$code"
"""


def run_in(folder: Path, script: str, elw: Callable[[list[str]], int], **environment: object) -> None:
    """Run a script of bash in a folder; it must succeed."""
    with tempfile.TemporaryDirectory() as scratch:
        calls, answers, program = (Path(scratch) / name for name in ("calls", "answers", "elw"))
        os.mkfifo(calls)
        os.mkfifo(answers)
        program.write_text(FORWARDER)
        program.chmod(0o755)
        given = {"CALLS": calls, "ANSWERS": answers, "PATH": f"{scratch}:{os.environ['PATH']}", **environment}
        variables = {**os.environ, **{name: str(value) for name, value in given.items()}}
        with (
            os.fdopen(os.open(calls, os.O_RDWR)) as called,
            subprocess.Popen(["bash", "-c", script], cwd=folder, env=variables) as process,
        ):
            while process.poll() is None:
                if select.select([called], [], [], 0.05)[0]:
                    where, *words = iter(lambda: called.readline().rstrip("\n"), "")
                    with contextlib.chdir(where):
                        code = elw(words)
                    answers.write_text(f"{code}\n")
            assert process.returncode == 0


@pytest.fixture(scope="module")
def house(tiny: Callable[..., Any], small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> House:
    root = tmp_path_factory.mktemp("house")
    for category in ("code", "natural"):
        (root / "corpus" / category).mkdir(parents=True)
        for path in sorted((small_corpus / category).iterdir()):
            (root / "corpus" / category / path.name).write_bytes(path.read_bytes()[:400])
    model = tiny("llama")
    options = IngestOptions(
        db=root / "whole.duckdb", model=str(model.folder), saes=(model.saes,), context_length=16, dtype="float32",
        store_gradients=True, layers=(1,),
    )  # fmt: skip
    ingest([root / "corpus"], options)
    run_in(root, on_page(r"```sh\n(elw ingest [^\n]*--plan-only[^\n]*)\n"), elw_of(options))
    planned = root / "plan.duckdb"
    with Warehouse(options.db) as warehouse:
        groups = warehouse.run("merge/groups", run=1).fetchall()
        by_table = {table: _rows(warehouse, table) for table in SORTED_BY}
        rows = {group: {t: of[group] for t, of in by_table.items() if group in of} for group, *_ in groups}
        prints = {table: _prints(warehouse, table) for table in SORTED_BY}
        identity, length = warehouse.sql("SELECT identity, context_length FROM runs").fetchall()[0]
        digests, calibration = plan_digests(warehouse, 1), calibration_sha256(warehouse, 1)
        cpu = warehouse.sql("SELECT DISTINCT cpu FROM plan_groups").value()
    cells = [(category, half, n_tokens) for _, category, half, n_tokens, _ in groups]
    shards = {
        f"{index}/{n}": [group for group, of in enumerate(deal(cells, n)) if of == index]
        for n in (2, 3, 7)
        for index in range(1, n + 1)
    }
    assert calibration is not None
    return House(
        options, root / "corpus", planned, tables(options.db), identity, length,
        {group: n_tokens for group, _, _, n_tokens, _ in groups}, shards, rows, prints, digests, calibration, cpu, root,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shards(house: House) -> dict[str, Path]:
    """A warehouse of each shard of two, three and seven."""
    return {
        name: house.file(groups, house.root / f"shard-{name.replace('/', '-of-')}.duckdb", name)
        for name, groups in house.shards.items()
    }


@pytest.fixture
def new(empty_warehouse: Path, tmp_path: Path) -> Path:
    """A warehouse without runs to merge into."""
    return Path(shutil.copy(empty_warehouse, tmp_path / "new.duckdb"))


#: Promises that groups which are moved might break.
AT_STAKE = (*contents.QUICK_CHECKS, "committed_groups", "orphans", "rows_of_runs")


def broken(db: Path, names: Iterable[str] = AT_STAKE) -> list[str]:
    """The promises that a file breaks."""
    with Warehouse(db) as warehouse:
        return [name for name in names if run_check(warehouse, name).n_broken]


def refuses(match: str, sources: Iterable[object], db: Path, run: str | None = None) -> None:
    """Assert that a merge is refused in one sentence, and that nothing has been made or changed."""
    before = db.read_bytes() if db.exists() else None
    with pytest.raises(ElwError, match=match) as raised:
        merge([str(source) for source in sources], db, run)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)
    assert (db.read_bytes() if db.exists() else None) == before


# ------------------------------------------------------------------------------------------------ the same tables


def test_the_array_of_the_how_to_comes_to_the_whole(house: House, tmp_path: Path) -> None:
    """The page's own commands: planned once, a task with a copy, one that stages, requeued, merged. No statistics of a
    part; then those of one ingest, to the last key and 12 digits; and once merged, nothing is done again."""
    script, elw = on_page(r"```bash\n(#!/bin/bash\n.*?)```"), elw_of(house.options)
    staging = on_page(r"```bash\n(cp plan.*?)```")
    os.symlink(house.texts, tmp_path / "corpus")
    shutil.copy(house.planned, tmp_path / "plan.duckdb")
    node = tmp_path / "disk of the node"
    node.mkdir()
    task = {"SLURM_SUBMIT_DIR": tmp_path, "SLURM_CPUS_PER_TASK": 1, "SHARDS": 2, "TMPDIR": node}
    run_in(tmp_path, script, elw, **task, SLURM_ARRAY_TASK_ID=1)
    run_in(tmp_path, f"n_shards=2\n{staging}", elw, **task, SLURM_ARRAY_TASK_ID=2)
    for db, held in ((tmp_path / "shards" / "1.duckdb", house.shards["1/2"]), (node / "plan.duckdb", [])):
        house.held(db, held)
        assert broken(db) == []
        with Warehouse(db) as warehouse:
            assert warehouse.sql("SELECT stats_tokens FROM runs").value() == 0
            staged = warehouse.sql("SELECT group_id FROM staged_groups ORDER BY ALL").fetchall()
        assert [group for (group,) in staged] == ([] if held else house.shards["2/2"])

    def computes(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    with pytest.MonkeyPatch.context() as patch:  # killed with its node, and started again: all is there
        patch.setattr(loading, "load_model", computes)
        run_in(tmp_path, script, elw, **task, SLURM_ARRAY_TASK_ID=1)
        (node / "plan.duckdb").unlink()
        run_in(tmp_path, f"n_shards=2\n{staging}", elw, **task, SLURM_ARRAY_TASK_ID=2)
    run_in(tmp_path, on_page(r"--wrap '(elw merge .*?)'"), elw)
    with Warehouse(tmp_path / "run.duckdb") as warehouse:
        assert warehouse.sql("SELECT count(*) FROM feature_statistics").value() == 0
    run_in(tmp_path, on_page(r"```sh\n(elw merge stage[^\n]*)\n"), elw)
    assert_equal_tables(tables(tmp_path / "run.duckdb"), house.expected)
    assert broken(tmp_path / "run.duckdb", check_names()) == []
    again = merge([str(tmp_path / "stage"), str(tmp_path / "shards" / "1.duckdb")], tmp_path / "run.duckdb")
    assert (again.new_groups, again.is_finished) == (0, True)
    assert str(again).startswith("Nothing to take over")


def test_groups_that_were_staged_merge_to_the_whole(
    house: House, tmp_path: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Staged instead of stored; the warehouse knows where, computes none again, and takes them in; so does one that
    knows nothing of the run."""
    db, stage = Path(shutil.copy(house.planned, tmp_path / "staged.duckdb")), tmp_path / "stage"
    house.stage(house.groups, stage)
    own = replace(house.options, db=db, stage=str(stage))
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_model", None)
        for options in (own, replace(own, stage=None)):  # the first finds what lies there and was not noted
            summary = ingest([house.texts], options)
            assert (summary.new_groups, summary.tokens) == (0, 0)
            assert summary.staged_tokens == summary.planned_tokens
            assert "elw merge --db staged.duckdb takes them in" in str(summary)
    assert broken(db) == []
    house.held(db, [])
    Merge([str(stage)], new).carry_out()
    house.held(new, house.groups)
    assert merge([], db).is_finished
    assert_equal_tables(tables(db), house.expected)
    assert broken(db) == []


@settings(max_examples=3)
@given(data=st.data())
def test_whatever_groups_are_where(
    house: House, shards: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, empty_warehouse: Path, data: Any
) -> None:
    """Shards of unlike divisions, staged groups, some of them twice or missing, in any order and in one call or two:
    what any source has is there once, and the rest is told of."""
    folder = tmp_path_factory.mktemp("example")
    names = data.draw(st.lists(st.sampled_from(sorted(shards)), max_size=4, unique=True), label="shards")
    staged = data.draw(st.sets(st.sampled_from(house.groups), min_size=0 if names else 1), label="staged")
    sources = [(str(shards[name]), set(house.shards[name])) for name in names]
    if staged:
        sources.append((str(house.stage(staged, folder / "stage")), staged))
    sources = data.draw(st.permutations(sources), label="order")
    first = data.draw(st.integers(1, len(sources)), label="in the first call")
    db = Path(shutil.copy(empty_warehouse, folder / "merged.duckdb"))
    there: set[int] = set()
    for part in (sources[:first], sources[first:]):
        if part:
            merging = Merge([name for name, _ in part], db)
            there |= set().union(*(groups for _, groups in part))
            assert merging.missing == sorted(set(house.groups) - there)
            merging.carry_out()
            house.held(db, there)
    assert broken(db) == []


def test_a_mixture_merges_to_the_whole(
    house: House, shards: dict[str, Path], tmp_path: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of three and of seven, which overlap, and a stage; few groups in a transaction, so that there are many."""
    monkeypatch.setattr(taking, "TOKENS_AT_ONCE", 600)
    monkeypatch.setattr(taking, "ROWS_AT_ONCE", 20_000)
    named = ["3/3", "5/7", "1/3", "2/7"]
    missing = set(house.groups) - {group for name in named for group in house.shards[name]}
    stage = house.stage({*missing, house.groups[0]}, tmp_path / "stage")
    summary = merge([*(str(shards[name]) for name in named[:2]), str(stage), *(str(shards[n]) for n in named[2:])], new)
    assert (summary.new_groups, summary.missing_groups) == (len(house.groups), 0)
    assert_equal_tables(tables(new), house.expected)


def test_a_plan_that_grew(house: House, shards: dict[str, Path], tmp_path: Path, new: Path) -> None:
    """Text that is appended after a shard was computed: old shards go together with new ones, and with a file that was
    merged before; a shard itself appends nothing."""
    texts = tmp_path / "texts"
    shutil.copytree(house.texts, texts)
    for path in sorted((house.texts / "code").iterdir())[:5]:
        (texts / "code" / f"new-{path.name}").write_text(path.read_text(encoding="utf-8")[:200] + " More of it. " * 9)
    shard = Path(shutil.copy(shards["1/2"], tmp_path / "shard.duckdb"))
    own = replace(house.options, db=shard, shard=Shard(1, 2))
    summary = ingest([texts], own)
    assert any("5 documents are not in the plan" in note for note in summary.notes)
    merge([str(shards["2/2"])], new)
    grown = Path(shutil.copy(house.planned, tmp_path / "grown.duckdb"))
    ingest([texts], replace(house.options, db=grown, plan_only=True))
    ingest([texts], replace(house.options, db=grown, shard=Shard(2, 2)))
    summary = merge([str(shard), str(grown)], new)
    old = len(house.groups)
    assert summary.planned_tokens > sum(house.n_tokens.values())
    with Warehouse(new) as warehouse:
        n_groups, n_there = warehouse.sql("SELECT count(*), count(committed_at) FROM plan_groups").fetchall()[0]
    assert old < n_there < n_groups
    assert summary.missing_shards == ["1/2"]
    assert broken(new) == []


def test_a_part_is_finished_when_it_is_asked_for(house: House, shards: dict[str, Path], new: Path) -> None:
    """--finish: statistics of what is there; when the rest comes, those of the whole."""
    summary = merge([str(shards["1/3"])], new, finish_part=True)
    assert (summary.is_finished, summary.missing_shards) == (True, ["2/3", "3/3"])
    with Warehouse(new) as warehouse:
        assert warehouse.sql("SELECT stats_tokens FROM runs").value() == summary.tokens > 0
        assert warehouse.sql("SELECT count(*) FROM efas").value() > 0
    assert broken(new) == []
    merge([str(shards[name]) for name in ("2/3", "3/3")], new)
    assert_equal_tables(tables(new), house.expected)


# ------------------------------------------------------------------------------------------------ cut short

KILLED = """
import os, signal, sys
from pathlib import Path
from energy_lens.warehouse.database import Warehouse
from energy_lens.warehouse.merging import taking
from energy_lens.warehouse.merging.run import Merge
taking.TOKENS_AT_ONCE, taking.ROWS_AT_ONCE = 600, 20_000
db, owner, name, left, *sources = sys.argv[1:]
left = int(left)
original = getattr(Warehouse, owner)
def wrapper(self, what, *args, **kwargs):
    global left
    result = original(self, what, *args, **kwargs)
    left -= what == name
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(Warehouse, owner, wrapper)
Merge(sources, Path(db)).carry_out()
"""


def test_killed_at_every_stage(house: House, shards: dict[str, Path], tmp_path: Path, new: Path) -> None:
    """kill -9 while the plan is written, among the rows of a shard and of a stage, and as a transaction ends: the same
    call does the rest, and the file is that of a merge that nobody killed."""
    shutil.copy(new, tmp_path / "other.duckdb")
    stage = house.stage(house.shards["2/2"], tmp_path / "stage")
    sources = [str(shards["1/2"]), str(stage)]
    stages = [
        ("append", "calibration", 1), ("run_formatted", "merge/take_by_token", 3), ("append", "activations", 1),
    ]  # fmt: skip
    for owner, name, number in stages:
        command = [sys.executable, "-c", KILLED, str(new), owner, name, str(number), *sources]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, (name, done.stderr)
    other = tmp_path / "other.duckdb"
    Merge([str(new)], other).carry_out()  # what lies in the log of a file that was killed is taken over, too
    with Warehouse(new) as warehouse:
        rows = warehouse.sql("SELECT group_id FROM plan_groups WHERE committed_at IS NOT NULL").fetchall()
    house.held(other, [group for (group,) in rows])
    Merge(sources, new).carry_out()
    house.held(new, house.groups)
    assert broken(new) == []


def test_ctrl_c_undoes_the_transaction_under_way(
    house: House, shards: dict[str, Path], new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was taken before it stays."""
    monkeypatch.setattr(taking, "TOKENS_AT_ONCE", 600)
    original, parts = taking._commit, []

    def interrupted(warehouse: Warehouse, target: Target, groups: Any, source: str) -> None:
        original(warehouse, target, groups, source)
        parts.append(list(groups))
        if len(parts) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(taking, "_commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            merge([str(shards["1/2"])], new)
    house.held(new, parts[0])
    merge([str(shards["1/2"])], new)
    house.held(new, house.shards["1/2"])


def test_a_full_disk_loses_nothing(house: House, shards: dict[str, Path], new: Path) -> None:
    """One sentence; what was taken stays, and with room again the same call does the rest."""
    sources = [str(shards["1/2"]), str(shards["2/2"])]
    Merge(sources[:1], new).carry_out()
    merging = Merge(sources, new)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ElwError, match=r"^The disk is full; .*: make room and run the command again\.$"):
            merging.carry_out()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    house.held(new, house.shards["1/2"])
    Merge(sources, new).carry_out()
    house.held(new, house.groups)


# ------------------------------------------------------------------------------------------------ refused


def test_what_is_no_source_is_refused(house: House, shards: dict[str, Path], tmp_path: Path) -> None:
    """Before a file is made, in one sentence each."""
    db, good = tmp_path / "none.duckdb", shards["1/2"]
    (tmp_path / "text").write_text("not a database " * 1000)
    (tmp_path / "folder").mkdir()
    refuses("There is no warehouse at .*absent", [good, tmp_path / "absent"], db)
    refuses("is not a readable warehouse", [good, tmp_path / "text"], db)
    refuses("holds no staged group or plan", [good, tmp_path / "folder"], db)
    refuses("can be written to", ["http://example.org/stage"], db)
    refuses("There is nothing to merge into", [], db)
    assert not db.exists()


def test_files_of_other_versions_and_files_that_are_written_are_refused(
    house: House, shards: dict[str, Path], tmp_path: Path
) -> None:
    db, good = tmp_path / "none.duckdb", shards["1/2"]
    newer, older, held = (Path(shutil.copy(shards["2/2"], tmp_path / f"{name}.duckdb")) for name in "abc")
    with duckdb.connect(str(newer)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (9999, 'later', now()::TIMESTAMP)")
    with duckdb.connect(str(older)) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE number = (SELECT max(number) FROM schema_migrations)")
    refuses("newer version of elw .*: upgrade energy-lens", [good, newer], db)
    refuses("older version of elw .*: elw migrate --db", [good, older], db)
    with ingest_lock(held, "elw ingest"):
        with pytest.raises(LockedError, match=rf"being written by elw ingest \(process {os.getpid()}\): wait for it"):
            merge([str(good), str(held)], db)
        with pytest.raises(LockedError, match="is being written by elw ingest"):
            merge([str(good)], held)
    assert not db.exists()


@pytest.fixture(scope="module")
def other_run(house: House) -> Path:
    """A run of other settings, as far as a merge looks at them."""
    named = f"UPDATE runs SET identity = '{'ab' * 32}', energies = ['hopfield'], energy_units = ['1']"
    return spoilt(house.planned, house.root / "other.duckdb", named)


def test_sources_of_another_run_are_refused(
    house: House, shards: dict[str, Path], other_run: Path, tmp_path: Path, new: Path
) -> None:
    """Whichever comes first, and among staged groups; unless the sources have one run in common."""
    refuses("holds another run .*hopfield.* than", [shards["1/2"], other_run], new)
    refuses("holds another run .*nll,hopfield.* than", [other_run, shards["1/2"]], new)
    stage = house.stage(house.groups[:1], tmp_path / "stage")
    refuses("holds another run", [other_run, stage], new)
    refuses("does not hold run", [shards["1/2"], other_run], new, run="1")
    both = Path(shutil.copy(other_run, tmp_path / "both.duckdb"))
    Merge([str(shards["1/2"])], both).carry_out()
    refuses("The sources hold 2 runs: choose one with --run", [both], new)
    Merge([str(both), str(shards["1/2"])], new).carry_out()
    house.held(new, house.shards["1/2"])
    with Warehouse(both) as warehouse:
        identities = [identity for (identity,) in warehouse.sql("SELECT identity FROM runs ORDER BY run_id").fetchall()]
        assert warehouse.sql("SELECT run_id FROM runs WHERE is_current").value() == 1
    for wanted in ("2", identities[1][:8]):
        assert Merge([str(both)], new, wanted).run.identity == house.identity
    for wanted in ("3", "abc", "", "9" * 5000):
        refuses("names no run, or several", [both], new, run=wanted)


def spoilt(source: Path, path: Path, *statements: str) -> Path:
    shutil.copy(source, path)
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)
    return path


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET sha256 = '0' || sha256[2:] WHERE document_id = 3",
        "UPDATE documents SET half = 'A'",
        "UPDATE contexts SET first_token = first_token + 1 WHERE context_id = 5",
        "UPDATE plan SET row = 1 - row WHERE group_id = 2 AND row < 2",
        "UPDATE plan_groups SET category = 'another' WHERE group_id = 4",
    ],
)
def test_another_plan_is_refused(
    statement: str, house: House, shards: dict[str, Path], tmp_path: Path, new: Path
) -> None:
    """Documents, contexts, and where each stands: what is planned otherwise is told, with what to do."""
    other = spoilt(shards["2/2"], tmp_path / "other.duckdb", statement)
    refuses("hold different plans of one run.*: plan once with elw ingest --plan-only", [shards["1/2"], other], new)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE calibration SET g_sd = g_sd * (1 + 1e-6) WHERE feature = 3 AND layer = 1 AND energy = 'nll'",
        "UPDATE saes SET norm_median = norm_median * (1 + 1e-9)",
        "DELETE FROM reference_rows WHERE feature = (SELECT min(feature) FROM reference_rows)",
        "UPDATE activation_quartiles SET q50 = q50 * 1.01 WHERE feature = 4",
    ],
)
def test_another_calibration_is_refused(
    statement: str, house: House, shards: dict[str, Path], tmp_path: Path, new: Path
) -> None:
    """To the last bit: groups that were measured otherwise do not add up."""
    other = spoilt(shards["2/2"], tmp_path / "other.duckdb", statement)
    refuses("were calibrated each on its own .*: plan once", [shards["1/2"], other], new)
    refuses("were calibrated each on its own", [other, house.stage([0], tmp_path / "stage")], new)


def test_where_texts_lie_is_no_part_of_a_plan(house: House, shards: dict[str, Path], tmp_path: Path, new: Path) -> None:
    """Shards of machines that have the corpus in different places go together."""
    moved = spoilt(
        shards["2/2"],
        tmp_path / "moved.duckdb",
        "UPDATE documents SET source = '/elsewhere/' || path, path = 'x/' || path",
    )
    merge([str(moved), str(shards["1/2"])], new)
    house.held(new, house.groups)


def test_staged_groups_that_will_not_do(house: House, shards: dict[str, Path], tmp_path: Path, new: Path) -> None:
    """Of another plan, without any plan, or damaged: named, and what came before it stays."""
    refuses("group-000003 is of another plan", [house.stage([3], tmp_path / "a", group_sha256="5" * 64)], new)
    alone = house.stage([0, 1], tmp_path / "alone", with_plan=False)
    refuses("holds groups and not their plan", [alone], new)
    merge([str(alone), str(house.planned)], new)
    house.held(new, [0, 1])
    last = house.shards["2/2"][-1]
    stage = house.stage([house.groups[0], last], tmp_path / "stage")
    next(stage.glob(f"*/group-{last:06d}/activations.parquet")).write_bytes(b"PAR1")
    with pytest.raises(ElwError, match=rf"group-{last:06d}/activations\.parquet is damaged .*stages it again\.$"):
        merge([str(shards["1/2"]), str(stage)], new)
    house.held(new, {0, 1, *house.shards["1/2"]})
    merge([str(shards["2/2"])], new)
    house.held(new, house.groups)


def test_a_shard_that_lost_rows_is_named(house: House, shards: dict[str, Path], tmp_path: Path, new: Path) -> None:
    other = spoilt(
        shards["2/2"],
        tmp_path / "other.duckdb",
        "DELETE FROM tokens WHERE token_id = (SELECT min(token_id) FROM tokens)",
    )
    with pytest.raises(ElwError, match=r"other\.duckdb holds .* tokens of groups that have .*elw check"):
        merge([str(other)], new)
    house.held(new, [])


def test_saes_that_are_gone_are_told_before_rows_are_moved(
    house: House, shards: dict[str, Path], tmp_path: Path, new: Path
) -> None:
    """Statistics need decoder rows; a merge that finishes none does not."""
    moved = [
        str(spoilt(shards[name], tmp_path / f"{i}.duckdb", "UPDATE saes SET source = '/elsewhere' || source"))
        for i, name in enumerate(("1/2", "2/2"))
    ]
    merge(moved[:1], new)
    with pytest.raises(UsageError, match="The SAE of layer 1 cannot be read any more"):
        merge(moved, new)
    house.held(new, house.shards["1/2"])


# ------------------------------------------------------------------------------------------------ what is told


def test_the_file_itself_may_be_among_the_sources(house: House, shards: dict[str, Path], tmp_path: Path) -> None:
    """As with elw merge *.duckdb, in any folder; a shard's file may take the others in."""
    for name in ("1/3", "2/3"):
        shutil.copy(shards[name], tmp_path / f"{name[0]}.duckdb")
    names = sorted(str(path) for path in tmp_path.glob("*.duckdb"))
    for _ in range(2):
        assert main(["merge", *names, "--db", names[0]]) == 0
        house.held(Path(names[0]), {*house.shards["1/3"], *house.shards["2/3"]})


def test_the_commands_tell_of_groups_elsewhere(
    house: House, shards: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """elw merge --json, elw runs, elw doctor: what is missing, and what to do."""
    new, shard = tmp_path / "merged.duckdb", shards["2/3"]
    assert main(["merge", str(shard), str(shards["1/3"]), "--db", str(new), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["missing_shards"] == ["3/3"]
    assert told["missing_groups"] == len(house.shards["3/3"])
    assert (told["is_finished"], told["new_rows"] > 1000) == (False, True)
    assert main(["runs", "--db", str(shard)]) == 0
    assert (
        "Run 1 is here as shard 2/3 of its plan: elw merge joins it with the other shards." in capsys.readouterr().err
    )

    def found(db: Path) -> dict[str, Any]:
        return {finding.subject: finding for finding in contents.warehouse(db, is_named=True, checks="quick")}

    finding = found(shard)["unfinished run"]
    assert "for shard 2/3 of its plan" in finding.said
    assert finding.remedy.startswith("elw merge completes it")
    staged = Path(shutil.copy(house.planned, tmp_path / "staged.duckdb"))
    own = replace(house.options, db=staged, stage=str(tmp_path / "stage"), max_tokens=1)
    ingest([house.texts], own)
    assert main(["runs", "--db", str(staged)]) == 0
    assert "1 group of run 1 are staged" in capsys.readouterr().err
    assert found(staged)["staged groups"].verdict == "ok"
    # Killed between the writing of a group and the note of it: it is found, and not computed again.
    with Warehouse(staged, writable=True) as warehouse:
        warehouse.sql("DELETE FROM staged_groups")
    assert ingest([house.texts], own).new_groups == 0
    folder = next((tmp_path / "stage").glob("*/group-*"))
    shutil.rmtree(folder)
    assert found(staged)["staged groups"].verdict == "problem"
    summary = merge([], staged)
    assert any("not where" in note for note in summary.notes)
    # A group that is gone is computed again, and a stage that is gone is no reason to.
    assert ingest([house.texts], own).new_groups == 1
    shutil.rmtree(tmp_path / "stage")
    with pytest.raises(ElwError, match="is not there: mount it or bring it back"):
        ingest([house.texts], own)
    elsewhere = house.stage(house.groups[:1], tmp_path / "elsewhere")
    assert merge([str(elsewhere)], staged).new_groups == 1
    assert main(["check", "--db", str(staged)]) == 0
    with Warehouse(staged, writable=True) as warehouse:
        warehouse.sql("INSERT INTO staged_groups VALUES (1, 1, '/stage/group-000001', 1, 1, '2026-01-01')")
    assert main(["runs", "--delete", "1", "--db", str(staged)]) == 0
    assert "1 staged group of it stay where they are, such as /stage/group-000001" in capsys.readouterr().err


def test_no_table_of_runs_is_forgotten(house: House) -> None:
    """Each comes with the plan, with the groups or with the finish, or is of an analysis that is done again."""
    with Warehouse(house.whole) as warehouse:
        of_runs = {table for (table,) in warehouse.run("runs/tables").fetchall()}
    of_analyses = "intervention|attractor|basins|native|critical|dose|effect|predictor"
    analyses = {name for name in of_runs if re.match(of_analyses, name)}
    logits = {"feature_logits", "logit_histogram"}
    assert of_runs == {*SORTED_BY, *PLAN_TABLES, *FILLED, *logits, *analyses, "staged_groups"}


def test_errors_are_of_the_right_kind(house: House, tmp_path: Path) -> None:
    """Exit codes: usage, and a warehouse that cannot be opened."""
    with pytest.raises(UsageError):
        merge([], tmp_path / "none.duckdb")
    with pytest.raises(WarehouseError):
        merge([str(tmp_path / "absent.duckdb")], tmp_path / "none.duckdb")
