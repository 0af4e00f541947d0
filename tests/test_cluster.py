"""`elw ingest --ray`: the tables of one process, whatever of the cluster is killed, silent or of another kind.

Where Ray is not installed all of this is skipped, and says so.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from energy_lens.analysis.merging import merge
from energy_lens.cli import main
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.cluster import Cluster, Crew, Report, Task, connected, crew, processor
from energy_lens.ingest.pipeline import IngestOptions, ingest
from tests import ray_cluster
from tests.test_ingest import assert_equal_tables, tables, value

pytest.importorskip("ray", reason="Ray is not installed: pip install 'energy-lens[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A running cluster with room for two workers."""
    with ray_cluster.running(n_cpus=2) as running:
        yield Cluster(running.address, workers=2)


# ------------------------------------------------------------------------------------------------ a crew


class Large(int):
    """A result that says how many bytes it takes, as groups do."""

    n_bytes = 3 * crew.FIRST_GUESS


class Squares:
    """A job whose results are easily told; a task is (number, what to do)."""

    def __init__(self, has: str = "1", needs: str = "1") -> None:
        self.has, self.expected = has, {"the model": needs}

    def facts(self) -> dict[str, str]:
        return {"the model": self.has}

    def take_up(self) -> Callable[[tuple[int, str], Callable[[int], object]], Any]:
        def do(content: tuple[int, str], progress: Callable[[int], object]) -> int:
            number, what = content
            if what == "die" or (what.startswith("die once ") and not os.path.exists(what[9:])):
                Path(what[9:] or os.devnull).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if what.startswith("stop once ") and not os.path.exists(what[10:]):
                Path(what[10:]).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            if what == "refuse":
                raise UsageError("The plan needs a text, which is gone.")
            if what == "fail":
                raise ValueError("of its own")
            time.sleep(1 if what in ("slow", "large") else 0.01)  # longer than between two glances
            progress(1)
            return Large(number**2) if what == "large" else number**2

        return do


def squares_of(
    cluster: Cluster, whats: list[str], job: Squares | None = None, **how: float
) -> tuple[list[int], list[Report]]:
    with connected(cluster) as connection, Crew(connection, job or Squares(), **how) as workers:
        tasks = (Task(f"task {i}", (i, what), 1) for i, what in enumerate(whats))
        reports = [report for report in workers.reports(tasks) if report]
        assert workers.units == len(whats)
    return sorted(report.result for report in reports), reports


def test_each_task_is_done_once(cluster: Cluster) -> None:
    found, reports = squares_of(cluster, [""] * 40)
    assert found == [i**2 for i in range(40)]
    assert len({report.task.name for report in reports}) == 40


def test_a_task_whose_worker_dies_is_done_by_another(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = squares_of(cluster, ["", f"die once {tmp_path / 'died'}", *[""] * 10])
    assert found == [i**2 for i in range(12)]
    assert "is lost (" in capsys.readouterr().err


def test_a_task_that_kills_whoever_takes_it_ends_the_work(cluster: Cluster) -> None:
    with pytest.raises(ElwError, match="task 1 was lost 3 times"):
        squares_of(cluster, ["", "die", *[""] * 4])


def test_only_the_task_under_way_pays(cluster: Cluster) -> None:
    """Whether a worker's calls are found to have failed in one look or in two."""
    member, tasks = crew._Member(1, None, None, 0.0), [Task(f"task {i}", (i, ""), 1) for i in range(3)]
    with connected(cluster) as connection, Crew(connection, Squares()) as workers:
        workers._give_back(member, tasks[:1], "it died")
        workers._give_back(member, tasks[1:], "it died")
        assert dict(workers._lives_of_task) == {"task 0": 1}
        assert sorted(task.name for task in workers._waiting) == ["task 0", "task 1", "task 2"]


def test_a_worker_that_is_silent_is_given_up(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = squares_of(cluster, ["", f"stop once {tmp_path / 'pid'}", *[""] * 10], patience=4.0)
    assert found == [i**2 for i in range(12)]
    assert "has not answered for 4 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "kind", "sentence"),
    [("refuse", UsageError, "which is gone"), ("fail", ElwError, r"task 1 failed on worker .*ValueError: of its own")],
)
def test_what_a_task_raises_is_raised_here(cluster: Cluster, what: str, kind: type[ElwError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        squares_of(cluster, ["", what])


def test_a_machine_with_another_model_is_refused_by_name(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match=r"Worker \d on .* is not worked with: it has the model 2 and not 1"):
        squares_of(cluster, [""], Squares(has="2"))


def test_a_machine_with_another_version_is_refused_by_name(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "__version__", "99.0")
    with pytest.raises(UsageError, match=r"has version \S+ of elw and not 99\.0"):
        squares_of(cluster, [""])


def copied_package(folder: Path) -> Path:
    """The package's own code as another installation has it, in a folder that can be told to Python."""
    import energy_lens

    root = Path(energy_lens.__file__).parent

    def others(where: str, names: list[str]) -> set[str]:
        kept = {name for name in names if name.endswith((".py", ".sql"))}
        if Path(where) == root:
            kept |= {"analysis", "cli", "ingest", "reports", "sql", "warehouse"}
        else:
            kept |= {name for name in names if "." not in name and (Path(where) / name).is_dir()}
        return set(names) - kept

    shutil.copytree(root, folder / "energy_lens", ignore=others)
    return folder


def test_a_node_with_another_version_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another installation on another node: its worker introduces itself, and the first node does all of the work."""
    other = copied_package(tmp_path)
    (other / "energy_lens" / "version.py").write_text('__version__ = "0.0.9"\n')
    with ray_cluster.running(n_cpus=1) as running:
        running.start(n_cpus=1, environment={"PYTHONPATH": str(other)})
        found, reports = squares_of(Cluster(running.address, workers=2), ["slow"] * 8)
    assert found == [i**2 for i in range(8)]
    assert len({report.worker for report in reports}) == 1
    assert "is not worked with: it has version 0.0.9 of elw and not " in capsys.readouterr().err


def test_results_that_wait_are_limited_in_bytes(cluster: Cluster) -> None:
    with connected(cluster) as connection, Crew(connection, Squares()) as workers:
        workers._room = 5 * crew.FIRST_GUESS
        most = 0
        tasks = [Task(f"task {i}", (i, "large"), 3) for i in range(6)]
        for report in workers.reports(tasks):
            under_way = sum(task.size for member in workers._members for task in member.tasks.values())
            most = max(most, under_way)
            if report:
                time.sleep(0.05)
        assert most == 3  # two of them would be more than there is room for


def test_no_task_waits_at_a_worker_near_the_end(cluster: Cluster) -> None:
    """Where there is one for each worker and no more, the first to be ready leaves the other's to the other."""
    for n_tasks in (2, 5):
        with connected(cluster) as connection, Crew(connection, Squares()) as workers:
            most = 0
            for _ in workers.reports([Task(f"task {i}", (i, "slow"), 1) for i in range(n_tasks)]):
                if n_tasks - workers._units <= 2:
                    most = max([most, *(len(member.tasks) for member in workers._members)])
            assert most == 1


def test_nobody_answers() -> None:
    nowhere = Cluster(f"127.0.0.1:{ray_cluster.free_port()}", workers=1)
    with pytest.raises(UsageError, match=r"Nothing answers at 127\.0\.0\.1:\d+ \("), connected(nowhere):
        pass


def test_no_processor_is_free(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ElwError, match="No worker has started for 2 s"):
        squares_of(replace(cluster, workers=1, threads=64), [""], nobody=2.0)
    with pytest.raises(UsageError, match=r"No node of the cluster .* has 64 processors"):
        squares_of(replace(cluster, workers=None, threads=64), [""])


# ------------------------------------------------------------------------------------------------ an ingest


@pytest.fixture(scope="module")
def run_options(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> IngestOptions:
    model = tiny("llama")
    return IngestOptions(
        db=tmp_path_factory.mktemp("cluster") / "alone.duckdb", model=str(model.folder), saes=(model.saes,),
        context_length=16, dtype="float32", compile="off",
    )  # fmt: skip


@pytest.fixture(scope="module")
def texts(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of eight documents of 400 bytes: two halves each."""
    folder = tmp_path_factory.mktemp("texts")
    for path in small_corpus.glob("*/*"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes()[:400])
    return folder


@pytest.fixture(scope="module")
def alone(run_options: IngestOptions, texts: Path) -> IngestOptions:
    """A run that one process of one thread did; only read it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ingest([texts], run_options)
    torch.set_num_threads(before)
    return run_options


def assert_same_run(found: Path, expected: Path) -> None:
    assert_equal_tables(tables(found), tables(expected))
    assert value(found, "SELECT count(DISTINCT cpu) FROM plan_groups") == 1
    assert value(found, "SELECT any_value(cpu) FROM plan_groups") == processor()


def test_tables_are_those_of_one_process(alone: IngestOptions, texts: Path, cluster: Cluster, tmp_path: Path) -> None:
    options = replace(alone, db=tmp_path / "ray.duckdb", cluster=cluster)
    summary = ingest([texts], options)
    assert summary.new_groups >= 8
    assert_same_run(options.db, alone.db)
    assert ingest([texts], options).new_groups == 0


def test_a_run_goes_on_in_a_cluster_and_the_other_way_round(
    alone: IngestOptions, texts: Path, cluster: Cluster, tmp_path: Path
) -> None:
    db = tmp_path / "both.duckdb"
    n_tokens = value(alone.db, "SELECT sum(n_tokens) FROM plan_groups")
    for share, where in ((0.3, None), (0.6, cluster), (1.0, None)):
        summary = ingest([texts], replace(alone, db=db, cluster=where, max_tokens=int(share * n_tokens)))
        assert summary.new_groups
    assert_same_run(db, alone.db)


def test_a_machine_without_the_texts_is_sent_their_tokens(
    alone: IngestOptions, texts: Path, cluster: Cluster, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The plan is made, then the texts are where only the driver looks for them."""
    moved = shutil.copytree(texts, tmp_path / "texts")
    db = tmp_path / "moved.duckdb"
    ingest([moved], replace(alone, db=db, max_tokens=1))
    moved.rename(tmp_path / "elsewhere")
    ingest([tmp_path / "elsewhere"], replace(alone, db=db, cluster=cluster))
    assert "its tokens are sent" in capsys.readouterr().err
    assert_equal_tables(
        {name: table for name, table in tables(db).items() if name not in ("documents",)},
        {name: table for name, table in tables(alone.db).items() if name not in ("documents",)},
    )


def test_workers_are_killed_while_they_work(
    alone: IngestOptions, texts: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in a run, the process of whichever worker has just handed something in."""
    killed: list[int] = []
    original = Crew.reports

    def reports(self: Crew, tasks: Any) -> Iterator[Report | None]:
        for report in original(self, tasks):
            if report and len(killed) < 2:
                pid = int(report.worker.partition("process ")[2].rstrip(")"))
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            yield report

    monkeypatch.setattr(Crew, "reports", reports)
    options = replace(alone, db=tmp_path / "killed.duckdb", cluster=cluster)
    ingest([texts], options)
    assert len(killed) == 2
    assert_same_run(options.db, alone.db)


def test_a_node_is_killed(
    alone: IngestOptions, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """All of a node at once, with what lies there; the head has a processor to go on with."""
    with ray_cluster.running(n_cpus=1) as running:
        node = running.start(n_cpus=1)
        original = Crew.reports
        after = random.Random(3).randrange(1, 4)

        def reports(self: Crew, tasks: Any) -> Iterator[Report | None]:
            n_done = 0
            for report in original(self, tasks):
                n_done += report is not None
                if report and n_done == after:
                    running.kill(node)
                yield report

        monkeypatch.setattr(Crew, "reports", reports)
        options = replace(alone, db=tmp_path / "node.duckdb", cluster=Cluster(running.address, workers=2))
        ingest([texts], options)
    assert_same_run(options.db, alone.db)


def test_a_machine_with_another_sae_is_refused_by_name(
    alone: IngestOptions, texts: Path, cluster: Cluster, tiny: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An SAE is replaced after the driver has read it and before a worker does."""
    from energy_lens.ingest.pipeline import run as pipeline

    saes, others = shutil.copytree(alone.saes[0], tmp_path / "saes"), tiny("gpt2").saes
    original = pipeline.process_on

    def process_on(*arguments: Any) -> None:
        shutil.rmtree(saes)
        shutil.copytree(others, saes)
        original(*arguments)

    monkeypatch.setattr(pipeline, "process_on", process_on)
    options = replace(alone, db=tmp_path / "other.duckdb", saes=(saes,), cluster=cluster)
    with pytest.raises(UsageError, match=r"is not worked with: it has the SAE of layer 1 \w+ and not \w+"):
        ingest([texts], options)
    assert value(options.db, "SELECT count(*) FROM tokens") == 0


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("words", "address", "paths"),
    [
        (["--ray", "texts"], "local", ["texts"]),
        (["texts", "--ray"], "local", ["texts"]),
        (["--ray", "--json", "texts"], "local", ["texts"]),
        (["--ray", "auto", "texts"], "auto", ["texts"]),
        (["--ray", "10.0.0.1:6379", "texts"], "10.0.0.1:6379", ["texts"]),
        (["--ray=head:6379", "texts"], "head:6379", ["texts"]),
        (["--ray", "--", "texts"], "local", ["texts"]),
        (["--ray", "[::1]:6379", "a", "b"], "[::1]:6379", ["a", "b"]),
        (["texts"], None, ["texts"]),
    ],
)
def test_an_address_may_stand_behind_ray(
    words: list[str], address: str | None, paths: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from energy_lens.ingest import pipeline

    seen: list[tuple[list[str], IngestOptions]] = []

    def noted(corpus: Any, options: IngestOptions) -> Any:
        seen.append((list(map(str, corpus)), options))
        raise UsageError("enough")

    monkeypatch.chdir(tmp_path)
    for name in ("texts", "a", "b"):
        (tmp_path / name).write_text("Some text.")
    monkeypatch.setattr(pipeline, "ingest", noted)
    assert main(["ingest", *words]) == 2
    ((found, options),) = seen
    assert found == paths
    assert (options.cluster.address if options.cluster else None) == address


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workers", "2"], "--workers has no meaning without workers: add --ray"),
        (["--ray", "--workers", "0"], "--workers is 0; it must be from 1"),
        (["--ray", "--threads-per-worker", "-1"], "--threads-per-worker is -1"),
        (["--ray=ray://head:10001"], "A Ray client cannot hand tables on"),
        (["--ray=nowhere"], "--ray is 'nowhere'; give host:port"),
    ],
)
def test_what_cannot_be_carried_out_is_said_first(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("Some text.")
    assert main(["ingest", str(tmp_path / "text.txt"), "--db", str(tmp_path / "x.duckdb"), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x.duckdb").exists()


# ------------------------------------------------------------------------------------------------ a stage


def test_workers_write_to_a_stage(alone: IngestOptions, texts: Path, cluster: Cluster, tmp_path: Path) -> None:
    """No row passes through the driver, which notes where they are; merged, the tables are those of one process."""
    options = replace(alone, db=tmp_path / "staged.duckdb", cluster=cluster, stage=str(tmp_path / "stage"))
    summary = ingest([texts], options)
    assert (summary.tokens, summary.staged_tokens) == (0, summary.planned_tokens)
    assert ingest([texts], options).new_groups == 0
    assert merge([], options.db).is_finished
    assert_same_run(options.db, alone.db)
