"""What a cluster survives: processes are killed or stopped at random moments of an ingest, and its tables compared.

    python benchmarks/cluster_faults.py CORPUS --model FOLDER --sae FOLDER --rounds 10

Four kinds, each so many times: a worker's process is killed, all of a node is killed, the driver is killed (and the
same command run again), a worker is stopped and never answers. Each time the tables are to be those of one process:
keys and counts exactly, numbers to 1e-12 of their column's size. What is printed are counts.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from energy_lens.tests.ray_cluster import Cluster, processes_of, running
from energy_lens.tests.test_ingest import assert_equal_tables, tables

#: Seconds within which a fault comes, counted from when workers are asked for: some ten of them pass until they work.
SECONDS = 30.0

KINDS = ("worker killed", "node killed", "driver killed", "worker stopped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--max-tokens", type=int, default=70_000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    words = [
        str(given.corpus), "--model", str(given.model), "--sae", str(given.sae), "--dtype", "float32",
        "--compile", "off", "--context", "32", "--max-tokens", str(given.max_tokens),
    ]  # fmt: skip
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone.duckdb"
        ended(start([*words, "--db", str(alone)]))
        expected = tables(alone)
        print("| fault | times | same tables | command given again | workers replaced |\n|---|---|---|---|---|")
        for kind in given.kinds.split(","):
            same, restarts, again = 0, 0, 0
            for number in range(given.rounds):
                db = Path(folder) / f"{kind.replace(' ', '_')}_{number}.duckdb"
                one_restarts, one_again = once(kind, [*words, "--db", str(db)], chance)
                assert_equal_tables(tables(db), expected)
                same, restarts, again = same + 1, restarts + one_restarts, again + one_again
                print(f"{kind} {number}: the same tables, {one_again} replaced", file=sys.stderr, flush=True)
                db.unlink()
            print(f"| {kind} | {given.rounds} | {same} | {restarts} | {again} |", flush=True)


def once(kind: str, words: list[str], chance: random.Random) -> tuple[int, int]:
    """One ingest with one fault; returns how often the command had to be given again, and the groups done again."""
    with running(n_cpus=1) as cluster:
        node = cluster.start(n_cpus=1)
        words = [*words, f"--ray={cluster.address}", "--workers", "2"]
        driver = start(words)
        if not began(driver):
            raise SystemExit(f"the ingest did not begin:\n{said(driver)}")
        time.sleep(chance.uniform(0, SECONDS))
        if driver.poll() is not None:
            raise SystemExit(f"the ingest ended before the fault; give it more --max-tokens:\n{said(driver)}")
        if kind == "worker killed":
            strike(workers(cluster), chance, signal.SIGKILL)
        elif kind == "worker stopped":
            strike(workers(cluster), chance, signal.SIGSTOP)
        elif kind == "node killed":
            cluster.kill(node)
        else:
            driver.kill()
        code = driver.wait()
        text = said(driver)
        restarts = 0
        while code:
            restarts += 1
            if restarts > 3:
                raise SystemExit(f"it does not end:\n{text}")
            driver = start(words)
            code = driver.wait()
            text += said(driver)
        return restarts, len(re.findall(r"is lost \(", text))


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """An ingest in a process of its own; its messages go to a file."""
    log = tempfile.NamedTemporaryFile(prefix="elw-", suffix=".log", delete=False)  # noqa: SIM115 — it outlives this
    program = "import sys; from energy_lens.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, "ingest", *words], stderr=log, stdout=log, env=environment
    )
    vars(process)["log"] = Path(log.name)
    return process


def said(process: subprocess.Popen[bytes]) -> str:
    """What an ingest has written so far."""
    return Path(vars(process)["log"]).read_text(errors="replace")


def began(process: subprocess.Popen[bytes]) -> bool:
    """Wait until workers have been asked for; False where the process ended before."""
    while process.poll() is None:
        if "Starting 2 workers" in said(process):
            return True
        time.sleep(0.05)
    return False


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end, which is to be a good one."""
    if process.wait():
        raise SystemExit(said(process))


def workers(cluster: Cluster) -> list[int]:
    """Processes of the cluster that are workers of the ingest."""
    found = []
    for node in cluster.nodes:
        for pid in processes_of(node.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if words.startswith(b"ray::Worker"):
                found.append(pid)
    return found


def strike(pids: list[int], chance: random.Random, sign: signal.Signals) -> None:
    """Send one of them a signal, if there are any yet."""
    if pids:
        os.kill(chance.choice(sorted(pids)), sign)


if __name__ == "__main__":
    main()
