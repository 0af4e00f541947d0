"""How fast `elw merge` is: a run of many groups from warehouses of shards, and from staged Parquet.

    python benchmarks/merging.py demo.duckdb --copies 16 --shards 8

The groups of a finished run are stored under other ids, as those of so many copies of its documents, once in warehouses
of shards and once in a stage, as `elw ingest --shard` and `--stage` leave them. Then each is merged into a new file, in
a process of its own: rows and tokens a second, seconds of processors, and that process's peak memory. What both come to
must be the same rows. Sources were written just before, so that the system may have them in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from energy_lens import Warehouse
from energy_lens.warehouse.digests import calibration_sha256, plan_digests
from energy_lens.warehouse.merging.run import Merge
from energy_lens.warehouse.physical_order import SORTED_BY
from energy_lens.warehouse.plan_tables import read_plan, write_plan
from energy_lens.warehouse.runs import make_current
from energy_lens.warehouse.shards import deal
from energy_lens.warehouse.staging.groups import StageHeader, stage_group, stage_plan


@dataclass(frozen=True)
class Recorded:
    """A finished run: its plan, and the rows of its groups."""

    plan: Mapping[str, pl.DataFrame]
    rows: Mapping[int, Mapping[str, pl.DataFrame]]  #: by group_id and table
    context_length: int
    n_documents: int
    n_contexts: int
    n_groups: int

    @classmethod
    def of(cls, db: Path) -> Recorded:
        """The current run of a warehouse."""
        with Warehouse(db) as warehouse:
            if warehouse.behind:
                raise SystemExit(f"{db} was made by an older version: elw migrate --db {db} brings it to this one.")
            run, length = warehouse.sql("SELECT run_id, context_length FROM runs WHERE is_current").fetchall()[0]
            plan = read_plan(warehouse, run)
            rows: dict[int, dict[str, pl.DataFrame]] = {}
            for table in SORTED_BY:
                columns = warehouse.sql(f"SELECT * FROM {table} LIMIT 0").columns
                of_group = "t.group_id" if "group_id" in columns else "p.group_id"
                join = "" if "group_id" in columns else (
                    f"JOIN plan AS p ON p.run_id = t.run_id AND p.context_id = t.token_id // {length}"
                )  # fmt: skip
                query = f"SELECT {of_group} AS of_group, t.* FROM {table} AS t {join} WHERE t.run_id = $run"
                by_group = warehouse.sql(query, run=run).pl().partition_by("of_group", as_dict=True)
                for (group,), frame in by_group.items():
                    rows.setdefault(int(group), {})[table] = frame.drop("of_group", "run_id")
        sizes = (len(plan[table]) for table in ("documents", "contexts", "plan_groups"))
        return cls(plan, rows, length, *sizes)

    def many(self, copies: int) -> dict[str, pl.DataFrame]:
        """The plan of a run with so many copies of the documents, each a text of its own."""
        offsets = {"document_id": self.n_documents, "context_id": self.n_contexts, "group_id": self.n_groups}
        tables = dict(self.plan)
        for table in ("documents", "document_aliases", "contexts", "plan", "plan_groups"):
            frames = []
            for copy in range(copies):
                frame = _moved(self.plan[table], {name: copy * by for name, by in offsets.items()})
                if table == "documents":
                    frame = frame.with_columns(
                        sha256=pl.format("{}{}", pl.lit(f"{copy:04x}"), pl.col("sha256").str.slice(4))
                    )
                frames.append(frame)
            tables[table] = pl.concat(frames)
        return tables

    def groups(self, copies: int) -> Iterator[tuple[int, Mapping[str, pl.DataFrame]]]:
        """(group_id, rows by table) of each group of that run."""
        for copy in range(copies):
            offsets = {
                "document_id": copy * self.n_documents, "group_id": copy * self.n_groups,
                "token_id": copy * self.n_contexts * self.context_length,
            }  # fmt: skip
            for group, frames in sorted(self.rows.items()):
                yield copy * self.n_groups + group, {table: _moved(frame, offsets) for table, frame in frames.items()}


def _moved(frame: pl.DataFrame, offsets: Mapping[str, int]) -> pl.DataFrame:
    return frame.with_columns(pl.col(name) + by for name, by in offsets.items() if name in frame.columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("warehouse", type=Path)
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--shards", type=int, default=8)
    given = parser.parse_args()
    recorded = Recorded.of(given.warehouse)
    with tempfile.TemporaryDirectory(dir=given.warehouse.parent) as scratch:
        folder = Path(scratch)
        made = make(recorded, folder, given.copies, given.shards)
        print(
            f"{made['tokens']:,} tokens in {made['groups']:,} groups, {made['rows'] / made['tokens']:.0f} rows a token"
        )
        print(f"warehouses: {made['warehouse bytes'] / made['tokens']:,.0f} bytes a token", end="; ")
        print(f"stage: {made['stage bytes'] / made['tokens']:,.0f} bytes a token, {made['files']:,} files\n")
        print("| from | looking and planning, s | taking, s | of a processor, s | tokens/s | rows/s | peak memory |")
        print("|---|---|---|---|---|---|---|")
        prints = []
        for what, sources in (
            ("warehouses", sorted(map(str, folder.glob("shard-*.duckdb")))),
            ("Parquet", [made["stage"]]),
        ):
            db = folder / f"from {what}.duckdb"
            done = subprocess.run(
                [sys.executable, __file__, "--merge", str(db), *sources], check=True, capture_output=True, text=True
            )
            told = json.loads(done.stdout)
            per_second = " | ".join(f"{told[of] / told['taking']:,.0f}" for of in ("tokens", "rows"))
            print(f"| {what} | {told['looking']:.1f} | {told['taking']:.1f} | {told['processor']:.1f} | ", end="")
            print(f"{per_second} | {told['peak']:.2f} GB |", flush=True)
            with Warehouse(db) as warehouse:
                names = list(SORTED_BY)
                prints.append([warehouse.run_formatted("compact/fingerprint", {"table": t}).fetchall() for t in names])
                print(
                    f"  ({db.stat().st_size / told['tokens']:,.0f} bytes a token in the merged file)", file=sys.stderr
                )
            db.unlink()
        assert prints[0] == prints[1], "the two ways come to different rows"


def make(recorded: Recorded, folder: Path, copies: int, n_shards: int) -> dict[str, Any]:
    """Warehouses of shards and a stage with all groups of so many copies of a run."""
    planned, stage = folder / "plan.duckdb", folder / "stage"
    tables = recorded.many(copies)
    with Warehouse(planned, writable=True) as warehouse:
        with warehouse.transaction():
            run_id = write_plan(warehouse, tables)
            make_current(warehouse, run_id)
        digests, calibration = plan_digests(warehouse, run_id), calibration_sha256(warehouse, run_id)
    identity = tables["runs"]["identity"][0]
    assert calibration is not None
    header = {"identity": identity, "plan_sha256": digests.sha256, "calibration_sha256": calibration}
    stage_plan(str(stage), header, tables)
    cells = tables["plan_groups"].sort("group_id").select("category", "half", "n_tokens").rows()
    of_shards = deal(cells, n_shards)
    files = {shard: Path(shutil.copy(planned, folder / f"shard-{shard}.duckdb")) for shard in set(of_shards)}
    n_rows = 0
    for group, frames in recorded.groups(copies):
        n_rows += sum(map(len, frames.values()))
        n_tokens = cells[group][2]
        stage_group(
            str(stage),
            StageHeader(**header, group_id=group, group_sha256=digests.groups[group], n_tokens=n_tokens),
            frames,
        )
        with Warehouse(files[of_shards[group]], writable=True) as warehouse, warehouse.transaction():
            for table, frame in frames.items():
                warehouse.append(table, frame.with_columns(run_id=pl.lit(run_id, pl.Int32)), order_by=SORTED_BY[table])
            warehouse.run("ingest/commit_group", run=run_id, group=group, cpu="recorded")
    staged = list(stage.rglob("*.parquet"))
    return {
        "tokens": sum(n_tokens for _, _, n_tokens in cells), "groups": len(cells), "rows": n_rows, "stage": str(stage),
        "files": len(staged), "stage bytes": sum(path.stat().st_size for path in staged),
        "warehouse bytes": sum(path.stat().st_size for path in files.values()),
    }  # fmt: skip


def merge(db: Path, sources: list[str]) -> None:
    """Merge in this process, and print how long it took as JSON."""
    started = time.monotonic()
    work = Merge(sources, db)
    looking, before = time.monotonic() - started, os.times()
    merged = work.carry_out()
    processor = sum(os.times()[:2]) - sum(before[:2])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    told = {"looking": looking, "taking": merged.seconds, "tokens": merged.new_tokens, "rows": merged.new_rows}
    print(json.dumps({**told, "processor": processor, "peak": peak}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--merge"]:
        merge(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
