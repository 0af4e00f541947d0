"""A Ray cluster on this machine's loopback for tests: a head, and nodes that can be added and killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported: whether this machine has a token is left out

#: Seconds for a node to start in, on a busy machine.
START = 120

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Cluster:
    """Nodes of one cluster; each is a group of processes of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="elwray-", dir="/tmp"))  # a socket's path has 107 bytes at most
        self.port = free_port()
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, n_cpus: int, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A node; the first one is the head."""
        if self.nodes:
            where = [f"--address={self.address}"]
        else:
            where = [
                "--head",
                f"--port={self.port}",
                "--include-dashboard=false",
                f"--temp-dir={self.folder}",
            ]
        words = [
            *where, f"--num-cpus={n_cpus}", "--node-ip-address=127.0.0.1", "--object-store-memory=200000000",
            "--include-log-monitor=false", "--block",
        ]  # fmt: skip
        log = (self.folder / f"node_{len(self.nodes)}.log").open("wb")
        node = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), "start", *words],
            stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )  # fmt: skip
        self.nodes.append(node)
        deadline = time.monotonic() + START
        while b"started" not in Path(log.name).read_bytes():
            assert node.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.1)
        return node

    def kill(self, node: subprocess.Popen[bytes], sign: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to all processes of a node."""
        for pid in processes_of(node.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, sign)

    def end(self) -> None:
        for node in reversed(self.nodes):
            self.kill(node)
            node.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def running(n_cpus: int) -> Iterator[Cluster]:
    """A cluster whose head has so many processors."""
    cluster = Cluster()
    try:
        cluster.start(n_cpus)
        yield cluster
    finally:
        cluster.end()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def processes_of(pid: int) -> list[int]:
    """A process and those that it started, and these started; what it started first comes last."""
    children = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,sid="], capture_output=True, text=True, check=True)
    rows = [tuple(map(int, line.split())) for line in children.stdout.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, of, _ in rows if of == parent and child not in found]
    found += [child for child, _, session in rows if session in found and child not in found]
    return found
