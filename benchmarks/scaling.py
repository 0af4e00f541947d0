"""How far one driver goes: what it commits a second, what crosses the wire, and a cluster of recorded groups.

    python benchmarks/scaling.py demo.duckdb --node-speed 190 --nodes 1,3,10,30,100

Groups of a finished run are read back as the tables that a worker sent. Two measurements follow.

commit      one process stores them as `elw ingest` does, one transaction a group, as fast as it can: tokens, rows and
            megabytes a second, and memory. This is where a driver saturates.
simulation  Ray's workers return the recorded groups, each at the speed of so many nodes; the driver is the real one:
            crew, limit in bytes, unpacking, commits. Offered is what the nodes would compute, stored what arrived in
            the file; where stored falls behind, the driver is the bottleneck. Workers and driver share this machine, so
            that a driver with a machine of its own does better.
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from energy_lens import Warehouse
from energy_lens.ingest.cluster import Cluster, Crew, Task, connected
from energy_lens.ingest.pipeline.commits import Writer
from energy_lens.ingest.pipeline.groups import GroupTables
from energy_lens.ingest.pipeline.work import PackedGroup
from energy_lens.sql import identifier, literal
from energy_lens.warehouse.physical_order import SORTED_BY
from energy_lens.warehouse.plan import Context, Group
from energy_lens.warehouse.runs import StoredRun, add_gradient_columns, find_run

#: Groups that are recorded, and tables that say what a run is.
RECORDED = 8
KEPT = ("runs", "models", "saes", "run_energies", "reference_rows", "calibration", "activation_quartiles")

#: Seconds that each measurement takes at least, and groups of each worker: a window of one or two is off by what its
#: ends cut.
SECONDS = 30.0
GROUPS_PER_WORKER = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("warehouse", type=Path)
    parser.add_argument("--node-speed", type=float, required=True, metavar="TOKENS", help="a node's tokens a second")
    parser.add_argument("--nodes", default="1,3,10,30,100", metavar="N,...")
    parser.add_argument("--workers", type=int, default=4, help="processes that play the nodes, at most")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    given = parser.parse_args()
    groups = recorded(given.warehouse)
    packed = [PackedGroup.of(group) for group in groups]
    n_tokens = sum(group.group.n_tokens for group in groups)
    rows = sum(frame.height for group in groups for frame in group.frames.values())
    print(f"recorded: {len(groups)} groups, {n_tokens:,} tokens, {rows / n_tokens:.0f} rows a token")
    raw = sum(frame.estimated_size() for group in groups for frame in group.frames.values())
    print(
        f"on the wire: {sum(p.n_bytes for p in packed) / n_tokens:,.0f} bytes a token (in memory {raw / n_tokens:,.0f})"
    )
    with tempfile.TemporaryDirectory(dir=given.warehouse.parent) as folder:
        print("\n|  | tokens/s | rows/s | MB/s of Arrow | peak memory |\n|---|---|---|---|---|")
        speed = commit(Path(folder) / "commit.duckdb", given.warehouse, packed, given.seconds)
        per_token = rows / n_tokens, raw / n_tokens
        print(
            f"| one driver commits | {speed:,.0f} | {speed * per_token[0]:,.0f} | {speed * per_token[1] / 1e6:,.0f} | "
            f"{peak():.2f} GB |"
        )
        print("\n| nodes | offered, tokens/s | stored, tokens/s | share | driver's processor | driver's peak memory |")
        print("|---|---|---|---|---|---|")
        file = Path(folder) / "groups.pickle"
        file.write_bytes(pickle.dumps(packed))
        for nodes in map(int, given.nodes.split(",")):
            db = Path(folder) / f"nodes_{nodes}.duckdb"
            offered = nodes * given.node_speed
            workers = min(given.workers, nodes)
            stored, processor = simulate(db, given.warehouse, file, packed, offered, workers, given.seconds)
            print(
                f"| {nodes} | {offered:,.0f} | {stored:,.0f} | {stored / offered:.0%} | {processor:.0%} of one | "
                f"{peak():.2f} GB |",
                flush=True,
            )
            db.unlink()


# ------------------------------------------------------------------------------------------------ recorded groups


def recorded(db: Path) -> list[GroupTables]:
    """Groups of the current run with the tables that their worker made."""
    with Warehouse(db) as warehouse:
        if warehouse.behind:
            raise SystemExit(f"{db} was made by an older version: elw migrate --db {db} brings it to this one.")
        run, length = warehouse.sql("SELECT run_id, context_length FROM runs WHERE is_current").fetchall()[0]
        plan = warehouse.sql(
            "SELECT group_id, category, half, n_tokens FROM plan_groups WHERE run_id = $run ORDER BY n_tokens DESC "
            f"LIMIT {RECORDED}",
            run=run,
        ).fetchall()
        groups = []
        for group_id, category, half, n_tokens in plan:
            frames = {}
            for table in SORTED_BY:
                columns = warehouse.sql(f"SELECT * FROM {table} LIMIT 0").columns
                contexts = "(SELECT context_id FROM plan WHERE run_id = $run AND group_id = $group)"
                of_group = "group_id = $group" if "group_id" in columns else f"token_id // {length} IN {contexts}"
                query = f"SELECT * FROM {table} WHERE run_id = $run AND {of_group}"
                frame = warehouse.sql(query, run=run, group=group_id).pl()
                if frame.height:
                    frames[table] = frame
            groups.append(GroupTables(_group(group_id, category, half, n_tokens), "recorded", frames))
    return groups


def _group(group_id: int, category: str, half: str, n_tokens: int) -> Group:
    return Group(group_id, category, half, ((Context(0, 0, 0, 0, n_tokens),),))


def planned(db: Path, source: Path, groups: Sequence[Group]) -> StoredRun:
    """A warehouse with the source's run and a plan of these groups, none of them stored."""
    with Warehouse(db, writable=True) as warehouse:
        warehouse.sql(f"ATTACH {literal(str(source))} AS source (READ_ONLY)")
        which = "SELECT run_id, settings FROM source.runs WHERE is_current"
        run, identity = warehouse.sql(which.replace("settings", "identity")).fetchall()[0]
        energies = warehouse.sql("SELECT unnest(energies) FROM source.runs WHERE run_id = $run", run=run).fetchall()
        add_gradient_columns(warehouse, [energy for (energy,) in energies])
        for table in KEPT:
            columns = warehouse.sql(f"SELECT * FROM source.{table} LIMIT 0").columns
            where = "WHERE run_id = $run" if "run_id" in columns else "WHERE $run IS NOT NULL"
            warehouse.sql(f"INSERT INTO {identifier(table)} BY NAME SELECT * FROM source.{table} {where}", run=run)
        rows = [
            {"run_id": run, "group_id": group.group_id, "category": group.category, "half": group.half,
             "n_contexts": group.n_contexts, "n_tokens": group.n_tokens}
            for group in groups
        ]  # fmt: skip
        warehouse.append("plan_groups", pl.DataFrame(rows))
        warehouse.sql("DETACH source")
        stored = find_run(warehouse, identity)
    assert stored is not None
    return stored


# ------------------------------------------------------------------------------------------------ commits


def commit(db: Path, source: Path, packed: Sequence[PackedGroup], seconds: float) -> float:
    """Tokens a second that one process unpacks and stores."""
    many = [replace(packed[i % len(packed)].group, group_id=i) for i in range(10_000)]
    run = planned(db, source, many)
    began, n_tokens = time.monotonic(), 0
    with Writer(db, run) as writer:
        for i, group in enumerate(many):
            if time.monotonic() - began > seconds:
                break
            writer.announce()
            writer.put(replace(packed[i % len(packed)], group=group).unpacked())
            n_tokens += group.n_tokens
    return n_tokens / (time.monotonic() - began)


# ------------------------------------------------------------------------------------------------ simulation


@dataclass(frozen=True)
class Recorded:
    """A job whose worker returns recorded groups at a node's speed."""

    file: Path
    tokens_per_second: float  #: of one worker

    expected = {}  # noqa: RUF012 — of a frozen class, and never written

    def facts(self) -> dict[str, str]:
        return {}

    def take_up(self) -> Callable[[tuple[int, Group], Callable[[int], object]], PackedGroup]:
        packed: list[PackedGroup] = pickle.loads(self.file.read_bytes())
        due = time.monotonic()

        def compute(content: tuple[int, Group], progress: Callable[[int], object]) -> PackedGroup:
            nonlocal due
            which, group = content
            due = max(due, time.monotonic() - 1) + group.n_tokens / self.tokens_per_second
            time.sleep(max(0.0, due - time.monotonic()))
            progress(group.n_tokens)
            return replace(packed[which], group=group)

        return compute


def simulate(
    db: Path, source: Path, file: Path, packed: Sequence[PackedGroup], offered: float, workers: int, seconds: float
) -> tuple[float, float]:
    """Tokens a second that arrive in the file, and the share of a processor that the driver took.

    From the first arrival to the last one: what a worker is at, at either end, is counted once.
    """
    per_group = sum(one.group.n_tokens for one in packed) / len(packed)
    seconds = max(seconds, GROUPS_PER_WORKER * workers * per_group / offered)
    many = [replace(packed[i % len(packed)].group, group_id=i) for i in range(10_000)]
    run = planned(db, source, many)
    job = Recorded(file, offered / workers)

    def tasks() -> Iterator[Task]:
        for i, group in enumerate(many):
            yield Task(f"group {i}", (i % len(packed), group), group.n_tokens)

    n_tokens, began, last, processor = 0, 0.0, 0.0, 0.0
    with connected(Cluster(workers=workers)) as connection, Crew(connection, job) as crew, Writer(db, run) as writer:
        for report in crew.reports(tasks()):
            if report is None:
                continue
            result: Any = report.result
            writer.announce()
            writer.put(result.unpacked())
            last = time.monotonic()
            if not began:  # from the first on: starting is no part of it
                began, processor = last, processor_seconds()
                continue
            n_tokens += report.task.size
            if last - began > seconds:
                break
    took = last - began
    return n_tokens / took, (processor_seconds() - processor) / took


def processor_seconds() -> float:
    """Of this process alone."""
    used = os.times()
    return used.user + used.system


def peak() -> float:
    """This process's peak memory so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
