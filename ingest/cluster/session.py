"""An address in, a connection to Ray out: a cluster of this command's own, or one that is there.

Nothing is sent anywhere but between the machines of the cluster: usage statistics are off, and a cluster of our own
listens on this machine's loopback alone.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.cluster.options import Cluster

#: Bytes of results that a cluster of our own keeps at once; more than the crew ever lets lie there.
LOCAL_STORE = 1 << 30

#: Where Ray keeps the token by which the machines of a cluster know each other.
TOKEN = os.path.expanduser("~/.ray/auth_token")

#: Seconds that a cluster's head has to answer in.
ANSWER = 10.0

#: What a command needs of memory for itself and a worker beside its weights.
BESIDE_WEIGHTS = 1_500_000_000


@dataclass(frozen=True)
class Connection:
    """Ray, ready to start workers."""

    ray: Any  #: the library
    cluster: Cluster
    workers: int  #: that there are to be
    worker_bytes: int  #: that one of them keeps in memory


def ray_module() -> Any:
    """The library. Raises UsageError where it is not installed."""
    # A cluster that asks for a token started so because there was one in this very place: who connects has to say so.
    if "RAY_AUTH_TOKEN" in os.environ or os.path.exists(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN)):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Before the import, which reads them: Ray reports its use to its makers unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # in every process that connects, print would be another
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError("--ray needs Ray: pip install 'energy-lens[ray]'.") from error


@contextlib.contextmanager
def connected(cluster: Cluster, worker_bytes: int = 0) -> Iterator[Connection]:
    """A connection to the cluster, which for a local one is started, and ended with it.

    worker_bytes: that a worker keeps in memory, by which their number is limited unless it was given.
    Raises UsageError for an address at which no cluster answers, or one of another version of Ray or Python.
    """
    ray = ray_module()
    if ray.is_initialized():
        raise UsageError("This process is connected to Ray already: ray.shutdown() first, or start elw on its own.")
    workers = cluster.workers
    if cluster.is_local and workers is None:
        workers = local_workers(cluster.threads, worker_bytes)
    if not cluster.is_local:
        _knock(cluster.address)
    try:
        if cluster.is_local:
            assert workers is not None
            ray.init(
                address="local", num_cpus=workers * cluster.threads, num_gpus=0, include_dashboard=False,
                object_store_memory=LOCAL_STORE, log_to_driver=False, logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )  # fmt: skip
        else:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises whatever its parts do
        reason = " ".join(str(error).split())[:200]
        if cluster.is_local:
            raise ElwError(f"A local Ray cluster cannot be started ({reason}).") from error
        raise UsageError(
            f"No Ray cluster that can be worked with answers at {cluster.address} ({reason}): ray status tells of one."
        ) from error
    try:
        yield Connection(ray, cluster, workers or _workers_of(ray, cluster), worker_bytes)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises UsageError where nothing listens at an address: Ray itself would ask on for minutes."""
    host, _, port = address.rpartition(":")
    if not host:  # auto: Ray looks for one on this machine
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"Nothing answers at {address} ({error}): give the address that ray start --head printed."
        ) from error


def local_workers(threads: int, worker_bytes: int) -> int:
    """Workers of a cluster of our own: what processors and free memory are enough for, at least one."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 0
    by_memory = room // (worker_bytes + BESIDE_WEIGHTS) if room else processors
    return int(max(1, min(processors // threads, by_memory)))


def _workers_of(ray: Any, cluster: Cluster) -> int:
    """Workers for the processors of a cluster that is there: as many on each node as fit there."""
    cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    workers = int(sum(n // cluster.threads for n in cpus))
    if not workers:
        raise UsageError(
            f"No node of the cluster at {cluster.address} has {cluster.threads} processors for a worker: "
            "give fewer --threads-per-worker, or --workers for nodes that are still to come."
        )
    return workers
