"""What a worker is given: a job, which it takes up once, and tasks of it, in any order; what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

#: What a worker calls with the units of a task that are done since the last call.
Progress = Callable[[int], object]


class Job(Protocol):
    """Work that falls into tasks. It is pickled, so that what it holds has to be plain data."""

    def facts(self) -> Mapping[str, str]:
        """What this machine has that the numbers depend on, by name, such as the hash of a model's weights.

        Compared with `expected` before any task: who has something else is not worked with.
        """

    @property
    def expected(self) -> Mapping[str, str]:
        """What the facts have to be."""

    def take_up(self) -> Callable[[Any, Progress], Any]:
        """What does a task: called once by each worker, to load what all tasks need."""


@dataclass(frozen=True)
class Task:
    """A part of a job that depends on no other."""

    name: str  #: for messages: `group 12`
    content: Any  #: what the job's worker is called with
    size: int  #: units, such as tokens, that a bar counts


@dataclass(frozen=True)
class Report:
    """A task that is done."""

    task: Task
    result: Any
    worker: str  #: for messages: `worker 3 on node-12`
