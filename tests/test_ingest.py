"""Ingest: killed, interrupted, continued, extended, or refused, a run's tables are those of one quiet run."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.model import loading, precision
from energy_lens.ingest.pipeline import IngestOptions, IngestSummary, commits, ingest
from energy_lens.ingest.pipeline import run as pipeline
from energy_lens.ingest.statistics.finish import FILLED
from energy_lens.warehouse.database import LockedError, Warehouse, ingest_lock

# ------------------------------------------------------------------------------------------------ whole warehouses


def tables(db: Path, where: str = "true") -> dict[str, tuple[list[str], list[tuple[Any, ...]], np.ndarray]]:
    """table: (columns, keys, numbers) of a whole file, in the order of the keys; timestamps left out.

    Keys are all columns that are not floating-point. Where a table has such numbers, no key occurs twice.
    """
    contents = {}
    with contextlib.closing(duckdb.connect(str(db), read_only=True)) as connection:
        names = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE NOT internal AND NOT starts_with(table_name, 'schema_') "
            "AND table_name <> 'run_ids'"  # of the file, not of a run
        ).fetchall()
        for (table,) in names:
            columns = connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {table})").fetchall()
            numbers = [name for name, kind in columns if kind in ("FLOAT", "DOUBLE")]
            vectors = [name for name, kind in columns if kind in ("FLOAT[]", "DOUBLE[]")]
            keys = [n for n, kind in columns if n not in (*numbers, *vectors) and not kind.startswith("TIMESTAMP")]
            condition = where if "run_id" in keys else "true"
            quoted = ", ".join(f'"{name}"' for name in keys)
            key_rows = connection.execute(
                f"SELECT {quoted} FROM {table} WHERE {condition} ORDER BY {quoted}"
            ).fetchall()
            if numbers or vectors:
                assert len({str(key) for key in key_rows}) == len(key_rows), f"{table} holds a row twice"
            parts = []
            if numbers and key_rows:
                chosen = ", ".join(f'"{name}"::DOUBLE AS "{name}"' for name in numbers)
                found = connection.execute(
                    f"SELECT {chosen} FROM {table} WHERE {condition} ORDER BY {quoted}"
                ).fetchnumpy()
                parts += [np.ma.filled(np.ma.asarray(found[name]), np.nan)[:, None] for name in numbers]
            for name in vectors:
                rows = connection.execute(
                    f'SELECT "{name}" FROM {table} WHERE {condition} ORDER BY {quoted}'
                ).fetchall()
                if rows and rows[0][0] is not None:
                    parts.append(np.array([vector for (vector,) in rows], dtype=np.float64))
            values = np.concatenate(parts, axis=1) if parts else np.zeros((len(key_rows), 0))
            contents[table] = (keys, key_rows, values)
    return contents


def assert_equal_tables(found: Any, expected: Any, tolerance: float = 1e-12, without: tuple[str, ...] = ()) -> None:
    """Equal keys and counts; floats to `tolerance` relative, or of a column's RMS where they cancel."""
    assert found.keys() == expected.keys()
    for table, (columns, keys, values) in expected.items():
        assert found[table][0] == columns
        kept = [i for i, name in enumerate(columns) if name not in without]
        mine, theirs = ([tuple(row[i] for i in kept) for row in rows] for rows in (found[table][1], keys))
        assert mine == theirs, table
        own = found[table][2]
        assert own.shape == values.shape, table
        if values.size:
            assert np.array_equal(np.isnan(own), np.isnan(values)), table
            values, own = np.nan_to_num(values), np.nan_to_num(own)
            size = np.abs(values) + np.sqrt((values**2).mean(axis=0))
            worst = (np.abs(own - values) / np.where(size > 0, size, 1)).max()
            assert worst <= tolerance, (table, worst)


def value(db: Path, query: str) -> Any:
    """The single value of a query."""
    with Warehouse(db) as warehouse:
        return warehouse.sql(query).value()


# ------------------------------------------------------------------------------------------------ fixtures


@pytest.fixture
def options(tiny: Callable[..., Any], tmp_path: Path) -> IngestOptions:
    """Contexts of 32 tokens through the tiny Llama, float32, into a fresh file."""
    model = tiny("llama")
    return IngestOptions(
        db=tmp_path / "elw.duckdb", model=str(model.folder), saes=(model.saes,), context_length=32, dtype="float32"
    )


@pytest.fixture(scope="module")
def texts(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of eight documents of 500 bytes: two halves each, about a dozen groups at 16 tokens a context."""
    folder = tmp_path_factory.mktemp("texts")
    for category in ("code", "natural"):
        (folder / category).mkdir()
        for path in sorted((small_corpus / category).iterdir()):
            (folder / category / path.name).write_bytes(path.read_bytes()[:500])
    return folder


# ------------------------------------------------------------------------------------------------ a process to kill

DRIVER = """
import json, os, signal, sys
from pathlib import Path
import scipy.stats  # what is slow to import, once, before the first fork
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from energy_lens.ingest import pipeline
from energy_lens.ingest.pipeline import commits
from energy_lens.ingest.pipeline.groups import GroupBuilder
from energy_lens.ingest.rows import Columns
from energy_lens.warehouse import migrations
from energy_lens.warehouse.database import Warehouse

def say(text):
    os.write(1, f"{chr(10)}{text}{chr(10)}".encode())  # the progress bar leaves its line open

def counted(owner, name, event_of, die, sign):
    original, seen = getattr(owner, name), {}
    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        event = event_of(*args)
        seen[event] = seen.get(event, 0) + 1
        if die == [event, seen[event]]:
            os.kill(os.getpid(), sign)
        return result
    setattr(owner, name, wrapper)

def told(owner, name, word):
    original = getattr(owner, name)
    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        say(word)
        return result
    setattr(owner, name, wrapper)

def work(call):
    os.dup2(1, 2)
    sign = getattr(signal, call.get("signal") or "SIGKILL")
    counted(Warehouse, "append", lambda self, table, *_: f"append {table}", call.get("die"), sign)
    counted(Warehouse, "run", lambda self, name: f"run {name}", call.get("die"), sign)
    counted(migrations, "migration_files", lambda: "migrating", call.get("die"), sign)
    counted(migrations, "view_files", lambda: "making views", call.get("die"), sign)
    counted(commits, "store_group", lambda *_: "group", call.get("die"), sign)
    told(GroupBuilder, "build", "built")
    told(commits, "store_group", "group")
    given = call["options"]
    given["db"], given["saes"] = Path(given["db"]), tuple(map(Path, given["saes"]))
    given["columns"] = Columns(**given["columns"])
    try:
        summary = pipeline.ingest([call["corpus"]], pipeline.IngestOptions(**given))
    except BaseException as error:
        say(f"raised {type(error).__name__}: {error}")
    else:
        say("summary " + json.dumps(summary.as_dict()))

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work(json.loads(line))
        os._exit(0)
    say(f"child {child}")
    _, status = os.waitpid(child, 0)
    say(f"end {status}")
"""


class Driver:
    """Runs ingests in processes of their own, forked from one that has imported everything."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._collect, daemon=True).start()
        self.seen = ["end 0"]
        self.child = -1

    def _collect(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.strip():
                self._lines.put(line.strip())
        self._lines.put("end of driver")

    def start(self, corpus: Path, options: IngestOptions, die: tuple[str, int] | None = None, by: str = "") -> None:
        """Begin an ingest. die: send itself the signal `by` (else SIGKILL) right after the n-th such event."""
        given = {name: getattr(options, name) for name in options.__dataclass_fields__}
        given |= {
            "db": str(options.db), "saes": list(map(str, options.saes)), "columns": asdict(options.columns)
        }  # fmt: skip
        assert self._process.stdin
        call = {"corpus": str(corpus), "options": given, "die": die, "signal": by}
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        self.child = int(self.wait_for("child ").split()[1])
        self.seen = [f"child {self.child}"]

    def wait_for(self, beginning: str, timeout: float = 300) -> str:
        """The next line that begins so; fails when the work ends, or nothing comes, before it."""
        while True:
            line = self._lines.get(timeout=timeout)
            self.seen.append(line)
            if line.startswith(beginning):
                return line
            assert not line.startswith("end "), "\n".join(self.seen)

    def ended_within(self, seconds: float) -> bool:
        """Whether the work ended by itself within this time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self.seen.append(self._lines.get(timeout=left))
                if self.seen[-1].startswith("end "):
                    return True
        return False

    def stop(self, sign: signal.Signals) -> None:
        """Send the process a signal."""
        assert self.child > 1  # 0 and -1 would be whole groups of processes
        os.kill(self.child, sign)

    def end(self) -> int:
        """Wait for the end; the signal that ended the work, 0 when it ended by itself."""
        return os.WTERMSIG(int(self.wait_for("end ").split()[1]))

    def clear(self) -> None:
        """Make an end of whatever is still under way."""
        if not self.seen[-1].startswith("end "):
            with contextlib.suppress(ProcessLookupError):
                self.stop(signal.SIGKILL)
        while not self.seen[-1].startswith("end "):
            self.seen.append(self._lines.get(timeout=60))

    def run(self, corpus: Path, options: IngestOptions) -> dict[str, Any]:
        """An ingest from start to end; its summary."""
        self.start(corpus, options)
        summary: dict[str, Any] = json.loads(self.wait_for("summary ").removeprefix("summary "))
        assert self.end() == 0
        return summary

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def one_driver() -> Iterator[Driver]:
    started = Driver()
    yield started
    started.close()


@pytest.fixture
def driver(one_driver: Driver) -> Iterator[Driver]:
    """A driver with nothing under way, before and after."""
    yield one_driver
    one_driver.clear()


@pytest.fixture(scope="module")
def quiet_run(
    one_driver: Driver, tiny: Callable[..., Any], texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[IngestOptions, Any, float]:
    """Options, tables and seconds of a run that nobody interrupts."""
    model = tiny("llama")
    options = IngestOptions(
        db=tmp_path_factory.mktemp("quiet") / "elw.duckdb", model=str(model.folder), saes=(model.saes,),
        context_length=16, dtype="float32", store_gradients=True,
    )  # fmt: skip
    one_driver.run(texts, replace(options, db=options.db.with_name("warm-up.duckdb"), max_tokens=1))
    started = time.monotonic()
    one_driver.run(texts, options)
    return options, tables(options.db), time.monotonic() - started


# ------------------------------------------------------------------------------------------------ killed


def test_killed_at_ten_random_moments(
    driver: Driver, quiet_run: tuple[IngestOptions, Any, float], texts: Path, tmp_path: Path
) -> None:
    """kill -9 whenever it may be, then the same command: the tables of a run that was left alone, nothing twice.

    Soon enough that a file is killed some times before it is whole.
    """
    options, expected, seconds = quiet_run
    moments = random.Random(0)
    kills = files = 0
    while kills < 10:
        files += 1
        own = replace(options, db=tmp_path / f"{files}.duckdb")
        finished = False
        while not finished:
            driver.start(texts, own)
            finished = driver.ended_within(moments.uniform(0, 0.7 * seconds) if kills < 10 else 300)
            if not finished:
                driver.stop(signal.SIGKILL)
                kills += driver.end() == signal.SIGKILL
        assert_equal_tables(tables(own.db), expected)


def test_killed_at_every_stage(
    driver: Driver, quiet_run: tuple[IngestOptions, Any, float], texts: Path, tmp_path: Path
) -> None:
    """Killed inside each transaction (schema, plan, calibration, group, finish) and between them, one after another."""
    options, expected, _ = quiet_run
    own = replace(options, db=tmp_path / "staged.duckdb")
    stages = [
        ("migrating", 1), ("making views", 1), ("append documents", 1), ("append plan", 1),
        ("append activation_quartiles", 2), ("append calibration", 1), ("append activations", 1),
        ("run ingest/commit_group", 2), ("group", 3), ("append feature_moments", 1), ("append feature_histograms", 2),
        ("append tokens", 4), ("run finish/moments", 2), ("append feature_statistics", 11), ("run finish/record", 1),
    ]  # fmt: skip
    for stage in stages:
        driver.start(texts, own, die=stage)
        assert driver.end() == signal.SIGKILL, (stage, driver.seen)
    summary = driver.run(texts, own)
    assert summary["tokens"] == summary["planned_tokens"]
    assert_equal_tables(tables(own.db), expected)


def test_ctrl_c_keeps_finished_groups_with_their_statistics(
    driver: Driver, quiet_run: tuple[IngestOptions, Any, float], texts: Path, tmp_path: Path
) -> None:
    """After SIGINT the file is that of a run which was to stop there, statistics included; it can be continued."""
    options, expected, _ = quiet_run
    own = replace(options, db=tmp_path / "interrupted.duckdb")
    # The worst moment: the third group is in the file, and nobody has taken note of it yet.
    driver.start(texts, own, die=("group", 3), by="SIGINT")
    summary = json.loads(driver.wait_for("summary ").removeprefix("summary "))
    assert driver.end() == 0
    assert summary["interrupted"]
    assert summary["new_groups"] == 3
    assert summary["tokens"] == summary["new_tokens"] == value(own.db, "SELECT stats_tokens FROM runs")
    short = replace(options, db=tmp_path / "short.duckdb", max_tokens=summary["tokens"])
    assert driver.run(texts, short)["new_groups"] == summary["new_groups"]
    assert_equal_tables(tables(own.db), tables(short.db))
    driver.run(texts, own)
    assert_equal_tables(tables(own.db), expected)


@pytest.mark.parametrize(
    "stage", [("append activations", 2), ("append calibration", 1), ("append feature_statistics", 3)]
)
def test_ctrl_c_inside_a_transaction_loses_nothing(
    stage: tuple[str, int],
    driver: Driver,
    quiet_run: tuple[IngestOptions, Any, float],
    texts: Path,
    tmp_path: Path,
) -> None:
    """SIGINT in the middle of storing leaves no half of a transaction behind, and ends without another error."""
    options, expected, _ = quiet_run
    own = replace(options, db=tmp_path / "interrupted.duckdb")
    driver.start(texts, own, die=stage, by="SIGINT")
    assert driver.end() == 0
    last = next(line for line in reversed(driver.seen) if line.startswith(("summary ", "raised ")))
    assert '"interrupted": true' in last or last.startswith("raised KeyboardInterrupt"), last
    driver.run(texts, own)
    assert_equal_tables(tables(own.db), expected)


def test_a_reader_does_not_stop_an_ingest(
    driver: Driver, quiet_run: tuple[IngestOptions, Any, float], texts: Path, tmp_path: Path
) -> None:
    """While a reader holds the file at most 2 finished groups wait in memory, and who holds it is named."""
    options, expected, _ = quiet_run
    own = replace(options, db=tmp_path / "read.duckdb")
    driver.start(texts, own)
    driver.wait_for("group")
    reader = None
    while reader is None:
        with contextlib.suppress(duckdb.IOException):  # a commit is under way
            reader = duckdb.connect(str(own.db), read_only=True)
    with contextlib.closing(reader):
        line = driver.wait_for("Waiting")
        assert str(os.getpid()) in line
        assert not driver.ended_within(1)
        events = Counter(driver.seen)
        assert 1 <= events["built"] - events["group"] <= commits.MAX_PENDING_GROUPS == 2
    driver.wait_for("summary ")
    assert driver.end() == 0
    assert_equal_tables(tables(own.db), expected)


def test_a_second_ingest_into_the_same_file_is_refused(
    driver: Driver, quiet_run: tuple[IngestOptions, Any, float], texts: Path, tmp_path: Path
) -> None:
    """One ingest a file: the second is a sentence that names the first, which is not disturbed."""
    options, expected, _ = quiet_run
    own = replace(options, db=tmp_path / "shared.duckdb")
    driver.start(texts, own)
    driver.wait_for("group")
    with pytest.raises(LockedError, match=rf"is being written by elw ingest \(process {driver.child}\): wait .*\.$"):
        ingest([texts], own)
    driver.wait_for("summary ")
    assert driver.end() == 0
    assert_equal_tables(tables(own.db), expected)


def test_the_lock_ends_with_its_process(options: IngestOptions, corpus: Path) -> None:
    """A lock file that a dead process left behind stops nobody; a held one does, whoever holds it."""
    lock = options.db.with_name(options.db.name + ".ingest.lock")
    lock.write_text("123456789")
    assert ingest([corpus], replace(options, max_tokens=1)).new_groups == 1
    with ingest_lock(options.db), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        ingest([corpus], options)


# ------------------------------------------------------------------------------------------------ continued


def test_max_tokens_raised_step_by_step(options: IngestOptions, texts: Path, tmp_path: Path) -> None:
    """A prefix that grows, statistics finished at each step, ends as one run does; each step stops where it should."""
    options = replace(options, context_length=16)
    whole = replace(options, db=tmp_path / "whole.duckdb")
    total = ingest([texts], whole).tokens
    done = 0
    for wanted in (1, 1_300, 1_301, total - 1, total + 1_000):
        summary = ingest([texts], replace(options, max_tokens=wanted))
        groups = value(options.db, "SELECT list(n_tokens ORDER BY group_id) FROM plan_groups")
        expected = next((sum(groups[:n]) for n in range(len(groups)) if sum(groups[:n]) >= wanted), total)
        assert summary.tokens == expected == value(options.db, "SELECT count(*) FROM tokens")
        assert summary.new_tokens == expected - done
        assert (summary.new_groups == 0) == (summary.new_tokens == 0)
        done = expected
        run = "SELECT (stats_tokens, stats_groups) FROM runs"
        assert value(options.db, run) == (done, value(options.db, "SELECT count(committed_at) FROM plan_groups"))
    assert done == total
    assert_equal_tables(tables(options.db), tables(whole.db))


def test_a_prefix_is_balanced_over_categories(options: IngestOptions, texts: Path) -> None:
    """Wherever a run stops, categories and halves differ by at most a group."""
    ingest([texts], replace(options, context_length=16, max_tokens=1))
    with Warehouse(options.db) as warehouse:
        groups = warehouse.sql("SELECT category, half, n_tokens FROM plan_groups ORDER BY group_id").fetchall()
    largest = max(n for _, _, n in groups)
    left = Counter(category for category, _, _ in groups)
    tokens: Counter[str] = Counter()
    for category, _, n in groups:
        tokens[category] += n
        left[category] -= 1
        if all(left.values()):  # until the first category has nothing left to give
            assert max(tokens.values()) - min(tokens[name] for name in left) <= largest
    assert {(category, half) for category, half, _ in groups[:4]} == {(c, h) for c in ("code", "natural") for h in "AB"}


def test_batch_size_changes_no_keys(options: IngestOptions, texts: Path, tmp_path: Path) -> None:
    """Batches of 1, 3 and 8 contexts: the same rows, floats to 1e-4; a run goes on with another batch size."""
    found = {}
    for size in (8, 1, 3):
        own = replace(options, db=tmp_path / f"{size}.duckdb", batch_size=size, max_tokens=600)
        ingest([texts], own)
        found[size] = tables(own.db)
    # A gradient so close to a bin's edge that its last digit decides may be counted on either side.
    counts = ("active", "inactive", "mates_active", "mates_inactive")
    for size in (1, 3):
        assert_equal_tables(found[size], found[8], tolerance=1e-4, without=counts)
    assert ingest([texts], replace(own, batch_size=5)).new_groups == 0


def test_an_ingest_with_nothing_to_do_runs_no_model(
    options: IngestOptions, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again loads no model, changes no row, and says so."""
    first = ingest([corpus], options)
    assert str(first).startswith(f"Run 1 of {options.db} holds {first.tokens:,} of {first.tokens:,} planned tokens")
    before = tables(options.db)

    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load_model", loaded)
    again = ingest([corpus], options)
    assert again.new_groups == again.new_tokens == 0
    assert str(again) == f"Nothing to do: run 1 of {options.db} holds these {first.tokens:,} tokens already."
    assert_equal_tables(tables(options.db), before, tolerance=0)
    # Nor does one that asks for less, or for what --dtype auto once chose.
    assert ingest([corpus], replace(options, max_tokens=1)).new_groups == 0
    assert ingest([corpus], replace(options, dtype="auto")).run_id == 1


def test_finish_is_made_up_for(options: IngestOptions, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics that a failure kept from being written are written by the next call, without the model."""
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "finish", lambda *_: (_ for _ in ()).throw(ElwError("no luck.")))
        with pytest.raises(ElwError, match="no luck"):
            ingest([corpus], options)
    assert value(options.db, "SELECT stats_groups FROM runs") == 0
    assert value(options.db, "SELECT count(*) FROM plan_groups WHERE committed_at IS NULL") == 0
    monkeypatch.setattr(loading, "load_model", None)
    ingest([corpus], options)
    assert value(options.db, "SELECT stats_groups FROM runs") == value(options.db, "SELECT count(*) FROM plan_groups")
    assert value(options.db, "SELECT count(*) FROM efas") > 0


# ------------------------------------------------------------------------------------------------ a changed corpus


def test_appended_files_add_groups_and_keep_old_ones(options: IngestOptions, corpus: Path, small_corpus: Path) -> None:
    """New files become new groups of the same run; what was stored before stays to the last bit."""
    first = ingest([corpus], options)
    before = tables(options.db)
    for path in sorted((small_corpus / "code").iterdir())[4:6]:
        shutil.copy(path, corpus / "code" / path.name)
    second = ingest([corpus], options)
    after = tables(options.db)
    assert second.run_id == first.run_id
    assert second.documents == first.documents + 2
    assert second.new_tokens == second.tokens - first.tokens > 0
    assert value(options.db, "SELECT stats_tokens FROM runs") == second.tokens
    included = "SELECT count(*) FILTER (included) FROM token_layers WHERE layer = 1"
    assert value(options.db, "SELECT DISTINCT n_tokens FROM efas WHERE layer = 1 AND energy = 'nll' "
                 "AND gradient = 'decoder' AND category = 'all'") == value(options.db, included)  # fmt: skip
    for table in set(after) - {"runs", "saes", "models", *FILLED}:
        columns, keys, values = after[table]
        kept = set(map(str, before[table][1]))
        old = [i for i, key in enumerate(keys) if str(key) in kept]
        assert [keys[i] for i in old] == before[table][1], table
        np.testing.assert_array_equal(values[old], before[table][2], err_msg=table)
        if table == "plan_groups":
            new = [key[columns.index("group_id")] for key in keys if str(key) not in kept]
            assert sorted(new) == list(range(len(old), len(keys)))
    assert ingest([corpus], options).new_groups == 0


def test_edited_and_removed_files_are_announced(
    options: IngestOptions, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run still holds the old text of such files; ingest says so, each time, and names the remedy."""
    ingest([corpus], options)
    before = tables(options.db)
    edited, removed = sorted((corpus / "code").iterdir())[:2]
    edited.write_text("def changed():\n    return 'quite another text, long enough for a context of its own'\n" * 4)
    removed.unlink()
    for _ in range(2):
        capsys.readouterr()
        summary = ingest([corpus], options)
        told = capsys.readouterr().err
        for path, what in ((edited, "edited"), (removed, "removed")):
            sentence = f"code/{path.name} was {what} since: the run still holds the old text; --new-run starts afresh."
            assert sentence in summary.notes
            assert sentence in told
    after = tables(options.db)
    for table in ("tokens", "activations", "documents"):
        assert set(map(str, before[table][1])) <= set(map(str, after[table][1]))
    # Another corpus whose files happen to have these names is no edit of them.
    other = corpus.with_name("other")
    shutil.copytree(corpus, other)
    for path in other.glob("*/*.txt"):
        path.write_text(path.read_text(encoding="utf-8") + "\nOne more line.\n", encoding="utf-8")
    summary = ingest([other], options)
    assert not any("edited" in note for note in summary.notes)
    assert summary.documents >= 15


def test_an_edited_file_whose_groups_are_still_to_come(options: IngestOptions, texts: Path, tmp_path: Path) -> None:
    """The plan needs the old text: a sentence that says so and names two remedies, and both work."""
    corpus = tmp_path / "edited"
    shutil.copytree(texts, corpus)
    ingest([corpus], replace(options, max_tokens=1))
    for path in corpus.glob("*/*.txt"):
        path.write_text(path.read_text(encoding="utf-8") + "\nOne more line.\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"edited since: restore it, or start with --new-run\.$"):
        ingest([corpus], options)
    fresh = ingest([corpus], replace(options, new_run=True, max_tokens=1))
    assert (fresh.run_id, fresh.documents) == (2, 16)
    shutil.copytree(texts, corpus, dirs_exist_ok=True)
    restored = replace(options, db=options.db.with_name("restored.duckdb"))
    ingest([corpus], replace(restored, max_tokens=1))
    for path in corpus.glob("code/*.txt"):
        path.write_text(path.read_text(encoding="utf-8") + "\nOne more line.\n", encoding="utf-8")
    with pytest.raises(UsageError, match="edited since: restore it"):
        ingest([corpus], restored)
    shutil.copytree(texts, corpus, dirs_exist_ok=True)
    summary = ingest([corpus], restored)
    assert summary.tokens == summary.planned_tokens


def test_appended_files_that_are_too_few_to_test(options: IngestOptions, texts: Path, tmp_path: Path) -> None:
    """One more document has no mates: that its tokens do not count is said, not that the category's z is NULL."""
    corpus = tmp_path / "appended"
    shutil.copytree(texts, corpus)
    first = ingest([corpus], options)
    assert not any("within-context test" in note for note in first.notes)
    (corpus / "natural" / "new.txt").write_text("It was a dark and stormy night; the rain fell in torrents. " * 20)
    (note,) = [note for note in ingest([corpus], options).notes if "within-context test" in note]
    assert "natural" in note
    assert "code" not in note
    assert "NULL" not in note
    counted = "SELECT count(*) FILTER (counted) FROM token_layers JOIN token_places USING (run_id, token_id)"
    assert value(options.db, counted + " WHERE path = 'natural/new.txt'") == 0
    assert value(options.db, "SELECT count(z) FROM efas WHERE category = 'natural'") > 0


def test_a_removed_file_whose_groups_are_still_to_come(options: IngestOptions, corpus: Path) -> None:
    """The same for a file that is gone; a file that only moved is found by its content."""
    ingest([corpus], replace(options, max_tokens=1))
    moved, gone = sorted((corpus / "natural").iterdir())[:2]
    moved.rename(corpus / "natural" / "renamed.txt")
    text = gone.read_bytes()
    gone.unlink()
    with pytest.raises(UsageError, match=rf"{gone.name}, which is gone: restore it, or start with --new-run\.$"):
        ingest([corpus], options)
    gone.write_bytes(text)
    summary = ingest([corpus], options)
    assert summary.tokens == summary.planned_tokens
    assert value(options.db, "SELECT count(*) FROM documents") == 8


def test_equal_files_are_one_document(options: IngestOptions, corpus: Path) -> None:
    """Copies are counted once, under the smallest path, with their other paths as aliases."""
    alone = ingest([corpus], options).tokens
    original = min((corpus / "code").iterdir())
    shutil.copy(original, corpus / "natural" / "copy.txt")
    shutil.copy(original, corpus / "a-copy.txt")
    copied = replace(options, db=options.db.with_name("copied.duckdb"))
    assert ingest([corpus], copied).tokens == alone
    with Warehouse(copied.db) as warehouse:
        rows = warehouse.sql(
            """
            SELECT d.path, list(a.path ORDER BY a.path) FROM documents AS d JOIN document_aliases AS a
            USING (run_id, document_id) GROUP BY d.path
            """
        ).fetchall()
        assert warehouse.sql("SELECT count(*) FROM documents").value() == 8
    assert rows == [("a-copy.txt", [f"code/{original.name}", "natural/copy.txt"])]


# ------------------------------------------------------------------------------------------------ identity


def test_another_seed_energy_layer_or_precision_is_another_run(options: IngestOptions, corpus: Path) -> None:
    """What numbers depend on makes a run; paths, batch size and --max-tokens do not."""
    short = replace(options, max_tokens=1)
    first = ingest([corpus], short)
    assert ingest([corpus / "code", corpus / "natural"], replace(short, batch_size=2)).run_id == first.run_id
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"energies": ("hopfield",)}, {"layers": (2,)}, {"context_length": 24}, {"dtype": "bfloat16"},
        {"store_gradients": True},
    ]  # fmt: skip
    runs = [ingest([corpus], replace(short, **change)).run_id for change in changes]
    assert runs == [2, 3, 4, 5, 6, 7]
    with Warehouse(options.db) as warehouse:
        counts = dict(warehouse.sql("SELECT run_id, count(*) FROM efas_all GROUP BY run_id").fetchall())
        assert warehouse.sql("SELECT run_id FROM runs WHERE is_current").fetchall() == [(7,)]
        assert warehouse.sql("SELECT list(DISTINCT energy) FROM efas_all WHERE run_id = 3").value() == ["hopfield"]
        assert warehouse.sql("SELECT list(DISTINCT layer) FROM efas_all WHERE run_id = 4").value() == [2]
    assert set(counts) == set(range(1, 8))
    assert ingest([corpus], short).run_id == 1
    assert ingest([corpus], replace(short, energies=("hopfield",))).run_id == 3


def test_a_new_run_starts_afresh_with_the_same_numbers(options: IngestOptions, corpus: Path) -> None:
    """--new-run leaves the old run alone; with equal text and seed it gets equal numbers. Later calls go on with it."""
    ingest([corpus], options)
    before = tables(options.db, "run_id = 1")
    assert ingest([corpus], replace(options, new_run=True)).run_id == 2
    assert ingest([corpus], options).run_id == 2
    first, second = (tables(options.db, f"run_id = {run}") for run in (1, 2))
    assert_equal_tables(first, before, tolerance=0, without=("is_current",))
    without = ("run_id", "identity", "settings", "is_current")
    assert_equal_tables(second, first, without=without)


def test_auto_precision_is_chosen_once(options: IngestOptions, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--dtype auto stores its choice with the run and goes on with it, without timing anything again."""
    short = replace(options, dtype="auto", max_tokens=1)
    chosen = ingest([corpus], short)
    assert chosen.dtype in loading.DTYPES
    assert value(options.db, "SELECT dtype FROM runs") == chosen.dtype
    monkeypatch.setattr(precision, "_faster", None)
    later = ingest([corpus], replace(short, max_tokens=None))
    assert (later.run_id, later.dtype) == (1, chosen.dtype)
    other = next(name for name in loading.DTYPES if name != chosen.dtype)
    assert ingest([corpus], replace(short, dtype=other)).run_id == 2
    assert ingest([corpus], short).run_id == 2  # the later of two equal runs


# ------------------------------------------------------------------------------------------------ trouble


class FullDisk:
    """A connection whose n-th statement of a kind fails as DuckDB's do on a full disk."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, beginning: str, countdown: list[int]) -> None:
        self._connection, self._beginning, self._countdown = connection, beginning, countdown

    def execute(self, query: str, *parameters: Any) -> Any:
        if query.startswith(self._beginning):
            self._countdown[0] -= 1
            if self._countdown[0] == 0:
                raise duckdb.IOException('IO Error: Could not write file "x.wal": No space left on device')
        return self._connection.execute(query, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize(
    ("beginning", "n"),
    [
        ("INSERT INTO activations", 2),
        ("INSERT INTO calibration", 1),
        ("INSERT INTO feature_statistics", 5),
        ("COMMIT", 4),
    ],
)
def test_a_full_disk_loses_nothing(
    beginning: str, n: int, options: IngestOptions, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence with the remedy; what was committed stays, and the same call goes on from there."""
    whole = replace(options, db=tmp_path / "whole.duckdb")
    ingest([corpus], whole)
    original, countdown = Warehouse.__init__, [n]

    def opened(self: Warehouse, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._connection = FullDisk(self._connection, beginning, countdown)  # type: ignore[assignment]

    with monkeypatch.context() as patch:
        patch.setattr(Warehouse, "__init__", opened)
        with pytest.raises(ElwError, match=r"^The disk is full.*: make room and run the command again\.$") as failure:
            ingest([corpus], options)
    assert failure.value.exit_code == 1
    assert countdown[0] == 0
    ingest([corpus], options)
    assert_equal_tables(tables(options.db), tables(whole.db))


def test_a_small_category_has_no_z_and_that_is_said(options: IngestOptions, small_corpus: Path, tmp_path: Path) -> None:
    """Fewer than 4 documents in a half: nothing is counted there, z, p and q are NULL, and the category is named."""
    corpus = tmp_path / "uneven"
    shutil.copytree(small_corpus / "natural", corpus / "natural")
    (corpus / "few").mkdir()
    for path in sorted((small_corpus / "code").iterdir())[:3]:
        shutil.copy(path, corpus / "few" / path.name)
    summary = ingest([corpus], options)
    (note,) = [note for note in summary.notes if "z, p and q" in note]
    assert "few" in note
    assert "natural" not in note
    with Warehouse(options.db) as warehouse:
        rows = warehouse.sql(
            """
            SELECT category, count(*), count(z), count(p_value), count(q_value), count(z_null), count(score) FROM efas
            WHERE gradient = 'decoder' AND n_active > 0 GROUP BY category
            """
        ).fetchall()
        counted = warehouse.sql(
            """
            SELECT p.category, count(*) FILTER (l.counted) FROM token_layers AS l
            JOIN token_places AS p USING (run_id, token_id) GROUP BY p.category
            """
        ).fetchall()
    found = {category: numbers for category, *numbers in rows}
    assert found["few"][0] > 0
    assert found["few"][1:] == [0, 0, 0, 0, found["few"][0]]
    assert found["natural"][1] > 0.9 * found["natural"][0]
    assert dict(counted)["few"] == 0 < dict(counted)["natural"]


def test_a_single_document_works(options: IngestOptions, small_corpus: Path) -> None:
    """One file: its folder's name is the category; scores exist, intervals and tests do not."""
    path = max((small_corpus / "natural").iterdir(), key=lambda path: path.stat().st_size)
    summary = ingest([path], options)
    assert summary.documents == 1
    assert any(path.parent.name in note for note in summary.notes)
    with Warehouse(options.db) as warehouse:
        rows = warehouse.sql("SELECT category, n_documents, score, ci_low, z FROM efas WHERE n_active > 3").fetchall()
        assert warehouse.sql("SELECT count(*) FROM efas_halves").value() == 0
    assert {category for category, *_ in rows} == {"all", path.parent.name}
    for _, n_documents, score, low, z in rows:
        assert n_documents == 1
        assert score is not None
        assert low is z is None


def test_a_category_may_be_called_all(
    options: IngestOptions, small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every number is that of the same corpus with another word for the folder; totals are one row a feature."""
    found = {}
    for name in ("all", "alm"):  # of one order among the folders
        corpus = tmp_path / name
        shutil.copytree(small_corpus / "code", corpus / name)
        shutil.copytree(small_corpus / "natural", corpus / "natural")
        db = tmp_path / f"{name}.duckdb"
        ingest([corpus], replace(options, db=db))
        with Warehouse(db) as warehouse:
            found[name] = warehouse.sql(
                "SELECT * REPLACE (replace(category, 'alm', 'all/') AS category) FROM efas ORDER BY ALL"
            ).pl()
            totals = "FROM efas WHERE category = 'all' AND gradient = 'decoder'"
            assert warehouse.sql(f"SELECT count(*) - count(DISTINCT (layer, feature, energy)) {totals}").value() == 0
            shown = {category for (category,) in warehouse.sql("SELECT DISTINCT category FROM layer_energy").fetchall()}
        assert shown == {"all", "natural", "all/" if name == "all" else "alm"}
    assert found["all"].equals(found["alm"])
    assert "The category all is stored as all/" in capsys.readouterr().err


@pytest.mark.parametrize("length", [4, 16, 33])
def test_tokens_add_up_whatever_the_context_length(
    length: int, options: IngestOptions, corpus: Path, tiny: Callable[..., Any]
) -> None:
    """Groups, contexts, tokens and what was dropped add up to the documents; only a tail under 16 tokens is dropped."""
    summary = ingest([corpus], replace(options, context_length=length))
    tokenizer = tiny("llama").load().tokenizer
    with Warehouse(options.db) as warehouse:
        documents = warehouse.sql(
            """
            SELECT d.path, d.n_tokens, d.n_dropped_tokens, d.n_contexts, count(*), sum(c.n_tokens), max(c.n_tokens)
            FROM documents AS d JOIN contexts AS c USING (run_id, document_id) GROUP BY ALL
            """
        ).fetchall()
        planned = warehouse.sql("SELECT sum(n_tokens), sum(n_contexts) FROM plan_groups").fetchall()[0]
        stored = warehouse.sql("SELECT count(*), count(DISTINCT token_id) FROM tokens").fetchall()[0]
        by_group = warehouse.sql(
            """
            SELECT g.n_tokens, count(*) FROM plan_groups AS g JOIN plan AS p USING (run_id, group_id)
            JOIN tokens AS t ON t.token_id // $length = p.context_id GROUP BY g.group_id, g.n_tokens
            """,
            length=length,
        ).fetchall()
        layered = warehouse.sql("SELECT layer, count(*) FROM token_layers GROUP BY layer").fetchall()
        nll = warehouse.sql("SELECT count(*) FROM energies WHERE energy = 'nll'").value()
        texts = dict(
            warehouse.sql(
                """
                SELECT d.path, string_agg(t.text, '' ORDER BY t.token_id) FROM tokens AS t
                JOIN contexts AS c ON c.context_id = t.token_id // $length JOIN documents AS d USING (document_id)
                GROUP BY d.path
                """,
                length=length,
            ).fetchall()
        )
    assert len(documents) == 8
    dropped = 0
    for path, n_tokens, n_dropped, n_contexts, contexts, kept, longest in documents:
        ids = tokenizer((corpus / path).read_text(encoding="utf-8"), add_special_tokens=False).input_ids
        tail = len(ids) % length
        assert n_tokens == len(ids)
        assert n_dropped == n_tokens - kept == (tail if tail < 16 else 0)
        assert n_contexts == contexts == len(ids) // length + (tail >= 16)
        assert longest == length
        assert texts[path] == "".join(tokenizer.decode([i]) for i in ids[: n_tokens - n_dropped])
        dropped += n_dropped
    total = sum(n_tokens for _, n_tokens, *_ in documents) - dropped
    contexts = sum(n_contexts for _, _, _, n_contexts, *_ in documents)
    assert planned == (total, contexts)
    assert stored == (total, total)
    assert summary.tokens == summary.planned_tokens == total
    assert all(planned == found for planned, found in by_group)
    assert sorted(layered) == [(1, total), (2, total)]
    assert nll == total - contexts
    said = [re.match(r"([\d,]+) tokens in document ends of fewer than 16", note) for note in summary.notes]
    assert [int(match[1].replace(",", "")) for match in said if match] == ([dropped] if dropped else [])


def test_documents_too_short_to_use(options: IngestOptions, corpus: Path, tmp_path: Path) -> None:
    """A document of one token is left out and counted; a corpus of such documents is refused with a sentence."""
    (corpus / "code" / "one.txt").write_text("a")
    summary = ingest([corpus], replace(options, max_tokens=1))
    assert summary.documents == 9
    counts = "SELECT (n_tokens, n_contexts, n_dropped_tokens) FROM documents WHERE path = 'code/one.txt'"
    assert value(options.db, counts) == (1, 0, 1)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "one.txt").write_text("a")
    with pytest.raises(UsageError, match=r"too short.*\.$"):
        ingest([tmp_path / "short"], replace(options, db=tmp_path / "short.duckdb"))


def test_a_summary_is_json(options: IngestOptions, corpus: Path) -> None:
    """--json prints the summary: every field survives a round trip."""
    summary = ingest([corpus], replace(options, max_tokens=1))
    assert isinstance(summary, IngestSummary)
    assert json.loads(json.dumps(summary.as_dict())) == summary.as_dict()
    assert summary.tokens_per_second == pytest.approx(summary.new_tokens / summary.seconds)
