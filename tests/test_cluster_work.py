"""`elw sae train --ray` and `elw intervene --ray`: the files and tables of one process, by whoever was at work.

What needs a running cluster is skipped where Ray is not installed, and says so.
"""

from __future__ import annotations

import pickle
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from energy_lens import Warehouse
from energy_lens.analysis.attractors.run import AttractorOptions, find_attractors
from energy_lens.analysis.current_run import CurrentRun
from energy_lens.analysis.interventions import work
from energy_lens.analysis.interventions.options import InterventionOptions
from energy_lens.analysis.interventions.run import intervene
from energy_lens.cli.main import main
from energy_lens.errors import ElwError
from energy_lens.ingest.cluster import Cluster, Report, Task
from energy_lens.ingest.contexts import Ids
from energy_lens.ingest.corpus import Document, discover
from energy_lens.ingest.model.facts import model_facts
from energy_lens.ingest.model.language_model import LanguageModel
from energy_lens.ingest.sae.saving import save_sae
from energy_lens.ingest.training import rounds_ahead
from energy_lens.ingest.training.activation_store import ActivationStore
from energy_lens.ingest.training.documents import cut_contexts
from energy_lens.ingest.training.harvesting import HarvestJob
from energy_lens.ingest.training.saes import Progress, TrainingConfig, train_saes
from tests import ray_cluster
from tests.test_intervention_run import stored
from tests.test_sae_training import same_weights

LAYERS = [1, 2]
CONFIG = TrainingConfig(
    d_sae=48, ks=(4,), tokens=4_096, passes=2, batch_size=128, round_contexts=32, context_length=32, dead_after=1_000,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As a worker has: sums of several threads differ in their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A running cluster with room for two workers."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'energy-lens[ray]'")
    with ray_cluster.running(n_cpus=2) as running:
        yield Cluster(running.address, workers=2)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Any]) -> LanguageModel:
    return tiny("llama").load()


@pytest.fixture(scope="module")
def texts(small_corpus: Path) -> list[Document]:
    return discover([small_corpus])


@pytest.fixture(scope="module")
def contexts(model: LanguageModel, texts: Sequence[Document]) -> list[Ids]:
    return cut_contexts(model, texts, 32)[:110]


def files(folder: Path) -> dict[str, bytes]:
    """All that a store has on disk."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("round_*/*"))}


class Stop(Exception):
    """Raised to stop a training."""


# ------------------------------------------------------------------------------------------------ a training


@dataclass
class AnyOrder:
    """A crew in this process: as many tasks as it holds at once, done in any order; one of them may fail."""

    job: HarvestJob
    seed: int
    n_at_once: int
    fails_at: str = ""

    def reports(self, tasks: Iterable[Task | None]) -> Iterator[Report | None]:
        do, draws = pickle.loads(pickle.dumps(self.job)).take_up(), random.Random(self.seed)
        held: list[Task] = []
        for task in tasks:
            if task is not None:
                held.append(task)
            if held and (task is None or len(held) >= self.n_at_once):
                done = held.pop(draws.randrange(len(held)))
                if done.name == self.fails_at:
                    raise ElwError(f"{done.name} was lost 3 times.")
                yield Report(done, do(done.content, lambda _: None), "this process")
            else:
                yield None
                time.sleep(0.001)


@pytest.mark.parametrize(("seed", "n_at_once", "most_early"), [(1, 9, 1 << 20), (2, 40, 0)])
def test_rounds_are_the_same_in_whatever_order_batches_come(
    model: LanguageModel, contexts: list[Ids], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    seed: int, n_at_once: int, most_early: int,
) -> None:  # fmt: skip
    """And no more than the next one is harvested before it is asked for."""
    monkeypatch.setattr(rounds_ahead, "MOST_EARLY", most_early)
    alone = ActivationStore(tmp_path / "alone", model, contexts, LAYERS, round_contexts=24)
    store = ActivationStore(tmp_path / "ahead", model, contexts, LAYERS, round_contexts=24)
    assert len(store) > 3
    assert len(store.batches(0)) >= 3
    monkeypatch.setattr(store, "_harvest", lambda _: pytest.fail("harvested by this process"))
    crew: Any = AnyOrder(HarvestJob.of(store.harvester), seed, n_at_once)
    with rounds_ahead._RoundsAhead(store, crew) as ahead:
        for index in range(len(store)):
            for layer, x in ahead.round(index).items():
                assert torch.equal(x, alone.round(index)[layer])
            assert not any(store.was_harvested(later) for later in range(index + 2, len(store)))
    assert files(tmp_path / "ahead") == files(tmp_path / "alone")


def test_a_training_that_goes_on_makes_nothing_that_it_dropped(
    model: LanguageModel, contexts: list[Ids], tmp_path: Path
) -> None:
    """The first round is looked at again, and the second was trained on: it is not harvested anew."""
    store = ActivationStore(tmp_path, model, contexts, LAYERS, round_contexts=24)
    for index in range(2):
        store.round(index)
    store.drop(1)
    crew: Any = AnyOrder(HarvestJob.of(store.harvester), 0, 4)
    with rounds_ahead._RoundsAhead(store, crew) as ahead:
        ahead.round(0)
        ahead.round(2)
    assert store.lacks(1)


def test_what_ends_a_harvest_is_raised_where_its_round_is_asked_for(
    model: LanguageModel, contexts: list[Ids], tmp_path: Path
) -> None:
    """The round before is whole, and the one that was begun is not taken for it."""
    store = ActivationStore(tmp_path, model, contexts, LAYERS, round_contexts=24)
    crew: Any = AnyOrder(HarvestJob.of(store.harvester), 0, 1, fails_at="batch 2 of round 2")
    with rounds_ahead._RoundsAhead(store, crew) as ahead:
        ahead.round(0)
        with pytest.raises(ElwError, match="batch 2 of round 2 was lost"):
            ahead.round(1)
    assert store.was_harvested(0)
    assert not store.was_harvested(1)


def test_a_job_names_what_a_machine_has_to_have(
    model: LanguageModel, contexts: list[Ids], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    """Weights, configuration and tokenizer, each by its name."""
    job = HarvestJob.of(ActivationStore(tmp_path / "store", model, contexts, LAYERS).harvester)
    assert job.facts() == job.expected == model_facts(model.name)
    assert replace(job, model=str(tiny("gpt2").folder)).facts()["model"] != job.expected["model"]
    other = tmp_path / "other"
    shutil.copytree(model.name, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    facts = replace(job, model=str(other)).facts()
    assert [name for name in facts if facts[name] != job.expected[name]] == ["its configuration", "its tokenizer"]


def test_a_training_goes_on_in_a_cluster_and_back(
    model: LanguageModel, texts: list[Document], cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round by one process, the next ones by workers, the last by one process again: nothing shows who it was."""
    whole = train_saes(model, texts, LAYERS, CONFIG, tmp_path / "whole")
    n_rounds = len(list((tmp_path / "whole").glob("round_*")))
    assert n_rounds >= 4

    def until(share: float) -> Callable[[Progress], None]:
        def stop(progress: Progress) -> None:
            if progress.share > share / n_rounds:
                raise Stop

        return stop

    shared = tmp_path / "shared"
    with pytest.raises(Stop):
        train_saes(model, texts, LAYERS, CONFIG, shared, until(0.9))
    assert len(list(shared.glob("round_*/round.json"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(ActivationStore, "_harvest", lambda *_: pytest.fail("harvested by this process"))
        with pytest.raises(Stop):
            # One worker: two would take the machine twice the time to start, and their order is of no matter (above).
            train_saes(model, texts, LAYERS, CONFIG, shared, until(2.3), cluster=replace(cluster, workers=1))
    assert len(list(shared.glob("round_*/round.json"))) in (3, 4)
    same_weights(whole, train_saes(model, texts, LAYERS, CONFIG, shared))
    assert files(shared) == files(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------ interventions


@pytest.fixture(scope="module")
def with_attractors(tiny_warehouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("attractors") / "tiny.duckdb"
    shutil.copy(tiny_warehouse, db)
    find_attractors(db, AttractorOptions(layers=(2,), tokens=200, target=3.0))
    return db


def tables(db: Path) -> dict[str, pl.DataFrame]:
    """All that interventions write, in one order."""
    found = stored(db)
    with Warehouse(db) as warehouse:
        found["attractor_shifts"] = warehouse.sql("SELECT * FROM attractor_shifts").pl()
    return {name: frame.sort(_keys(frame)) for name, frame in found.items()}


def _keys(frame: pl.DataFrame) -> list[str]:
    return [name for name, kind in frame.schema.items() if kind.is_integer() or kind == pl.String]


def test_an_intervention_goes_on_in_a_cluster_to_the_same_tables(
    with_attractors: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two layers, every kind of control, the attractors of the later layer and two doses; to the last bit."""
    options = InterventionOptions(features=("top:2", "random:1"), contexts=16, probes=1, shift=1, doses=(0.5, 1.0, 2.0))
    one, shared = tmp_path / "one.duckdb", tmp_path / "shared.duckdb"
    for db in (one, shared):
        shutil.copy(with_attractors, db)
    done = intervene(one, options)
    assert [each.layer for each in done] == LAYERS

    measure_batch, calls = work.measure_batch, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(work, "measure_batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            intervene(shared, options)
    with monkeypatch.context() as patch:
        patch.setattr(work, "measure_batch", lambda *_: pytest.fail("measured by this process"))
        words = ["intervene", "--db", str(shared), "--features", "top:2,random:1", "--contexts", "16", "--probes", "1"]
        words += ["--shift", "1", "--dose", "2,0.5", "--format", "json"]
        assert main([*words, "--ray", cluster.address, "--workers", "2"]) == 0
    assert "Starting 2 workers of 1 thread" in capsys.readouterr().err
    expected = tables(one)
    assert len(expected["attractor_shifts"])
    assert len(expected["intervention_doses"])
    assert len(expected["dose_summaries"])
    for name, frame in tables(shared).items():
        assert_frame_equal(frame, expected[name], check_exact=True)
    nowhere = replace(options, cluster=Cluster("127.0.0.1:1"))
    assert [each.n_new_patches for each in intervene(shared, nowhere)] == [0, 0], "no worker is needed any more"


def test_an_sae_that_is_another_on_a_machine_is_named(tiny_warehouse: Path, tmp_path: Path) -> None:
    current = CurrentRun(tiny_warehouse)
    job = work.InterventionJob(
        current.facts.model, False, dict(current.saes), {}, {}, InterventionOptions(), model_facts(current.facts.model)
    )
    assert job.facts() == job.expected
    sae = current.sae(2)
    save_sae(replace(sae, b_dec=sae.b_dec + 1), tmp_path / "other")
    other = replace(current.saes[2], source=str(tmp_path / "other"))
    facts = replace(job, saes={**current.saes, 2: other}).facts()
    assert [name for name in facts if facts[name] != job.expected[name]] == ["the SAE of layer 2"]
