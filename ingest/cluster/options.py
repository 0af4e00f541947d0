"""Where the workers of a command run, as it was told, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from energy_lens.errors import require

#: The address of a cluster of the command's own, on this machine alone; it ends with the command.
LOCAL = "local"

#: Workers, and threads of one, at most: what a typing error exceeds and no cluster has.
MOST_WORKERS, MOST_THREADS = 10_000, 512


@dataclass(frozen=True)
class Cluster:
    """Where the workers of a command run."""

    address: str = LOCAL  #: or what Ray calls one: auto, or host:port of a cluster's head
    workers: int | None = None  #: None: as many as there are processors, and memory, for
    threads: int = 1  #: of a worker

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be carried out."""
        require(
            self.workers is None or 1 <= self.workers <= MOST_WORKERS,
            f"--workers is {self.workers}; it must be from 1 to {MOST_WORKERS:,}.",
        )
        require(
            1 <= self.threads <= MOST_THREADS,
            f"--threads-per-worker is {self.threads}; it must be from 1 to {MOST_THREADS}.",
        )
        require(
            not self.address.startswith("ray://"),
            "A Ray client cannot hand tables on: start elw on a machine of the cluster, and give --ray auto.",
        )

    @property
    def is_local(self) -> bool:
        return self.address == LOCAL
