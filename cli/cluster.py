"""`--ray [ADDRESS]`, `--workers`, `--threads-per-worker`: words in, where a command's workers run out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from energy_lens.errors import UsageError

if TYPE_CHECKING:
    from energy_lens.ingest.cluster import Cluster

#: What Ray takes for a cluster's address; a word of another form behind --ray is the command's own.
ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d{1,5}|\[[0-9a-fA-F:.%]+\]:\d{1,5}")

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Have Ray's workers do it: on this machine, or in the cluster at host:port; auto is the one at hand.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", help="Of --ray; else as many as processors and memory are enough for."),
]
ThreadsPerWorker = Annotated[
    int | None, typer.Option("--threads-per-worker", metavar="N", help="Of each worker of --ray; 1 unless given.")
]


class ClusterCommand(TyperCommand):
    """A command with --ray, behind which an address may stand or not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_address(args))


class ClusterGroup(TyperGroup):
    """The same of a group that is a command as well."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_address(args))


def _with_address(args: Iterable[str]) -> list[str]:
    """The words of a command line, with an address at every --ray."""
    words: list[str] = []
    following = list(args)
    while following:
        word = following.pop(0)
        if word == "--":
            words += [word, *following]
            break
        if word == "--ray":
            given = following.pop(0) if following and ADDRESS.fullmatch(following[0]) else "local"
            word = f"--ray={given}"
        words.append(word)
    return words


def cluster_of(ray: str | None, workers: int | None, threads: int | None) -> Cluster | None:
    """Where the workers run; None where --ray was not given.

    Raises UsageError for what has no meaning without it, and for what cannot be carried out.
    """
    from energy_lens.ingest.cluster import Cluster

    if ray is None:
        given = [
            name for name, value in (("--workers", workers), ("--threads-per-worker", threads)) if value is not None
        ]
        if given:
            raise UsageError(f"{given[0]} has no meaning without workers: add --ray.")
        return None
    if not ADDRESS.fullmatch(ray):
        raise UsageError(f"--ray is {ray!r}; give host:port, auto, or nothing for a cluster on this machine.")
    return Cluster(ray, workers, 1 if threads is None else threads)
