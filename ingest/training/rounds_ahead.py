"""A store and a cluster in, its rounds out: workers harvest the one that is asked for, and the next while it is used.

Whoever trains goes from round to round; a thread of this process has their batches harvested, puts what comes back in
the order of the round, and writes the same files as a harvest by this process.
"""

from __future__ import annotations

import _thread
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from torch import Tensor

from energy_lens.ingest.cluster import Connection, Crew, Task
from energy_lens.ingest.training.activation_store import ActivationStore
from energy_lens.ingest.training.harvesting import Batch, Harvested, HarvestJob

#: Rounds that are harvested while one is trained on: more would only fill the disk, since none is used before its turn.
AHEAD = 1

#: Bytes of what came before its turn, at most, until no more is given out.
MOST_EARLY = 256 << 20

#: What is said where a batch ends one worker after the other.
REMEDY = "rounds that are whole stay on disk; shorter contexts (--context) take less memory"

#: Seconds after which a wait looks for a signal, or an error of the other thread.
GLANCE = 0.1


@contextmanager
def rounds_of(store: ActivationStore, connection: Connection | None) -> Iterator[Callable[[int], dict[int, Tensor]]]:
    """Inside, what gives a round's residuals (`ActivationStore.round`); those that lack are harvested by workers.

    connection: None where this process harvests. Raises, where a round is asked for, what the workers raised.
    """
    if connection is None:
        yield store.round
        return
    with (
        Crew(connection, HarvestJob.of(store.harvester), remedy=REMEDY) as crew,
        _RoundsAhead(store, crew) as ahead,
    ):
        yield ahead.round


class _Leaving(Exception):
    """Raised in the thread that harvests, to leave a round that is not whole."""


class _RoundsAhead:
    """Rounds of a store as workers make them, in a thread that ends when this is left."""

    def __init__(self, store: ActivationStore, crew: Crew) -> None:
        self._store, self._crew = store, crew
        self._asked: set[int] = set()
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()  # those that were asked for and not begun
        self._turns: deque[tuple[int, int]] = deque()  # round and place of batches that were given out, in order
        self._early: dict[tuple[int, int], Harvested] = {}  # what came before its turn
        self._made: set[int] = set()
        self._leaving, self._ended = threading.Event(), threading.Event()
        self._errors: list[BaseException] = []

    def __enter__(self) -> _RoundsAhead:
        # Not a Thread: Ctrl-C inside its start() or join() leaves it stuck, or taken for finished (Python 3.11).
        _thread.start_new_thread(self._work, ())
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._leaving.set()
        while not self._ended.wait(GLANCE):  # a wait without end would miss a signal that comes just before it
            pass

    def round(self, index: int) -> dict[int, Tensor]:
        """A round's residuals, as soon as it is whole; the next ones are begun."""
        self._ask_for(index, self._store.lacks(index))
        for later in range(index + 1, min(index + 1 + AHEAD, len(self._store))):
            self._ask_for(later, not self._store.was_harvested(later))  # one that was dropped has been trained on
        while index in self._asked and index not in self._made:
            if self._ended.wait(GLANCE) and index not in self._made:
                raise self._errors[0]
        return self._store.round(index)

    def _ask_for(self, index: int, is_lacking: bool) -> None:
        if is_lacking and index not in self._asked:
            self._asked.add(index)
            self._wanted.put(index)

    # -------------------------------------------------------------------------------------------- the other thread

    def _work(self) -> None:
        try:
            harvested = self._in_order()
            while True:
                index, piece = next(harvested)
                with self._store.filling(index) as write:
                    write(piece.residuals)
                    for _ in self._store.batches(index)[1:]:
                        write(next(harvested)[1].residuals)
                self._made.add(index)
        except _Leaving:
            pass
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._ended.set()

    def _in_order(self) -> Iterator[tuple[int, Harvested]]:
        """The round of each batch and what it gave, in the order in which batches are given out."""
        for report in self._crew.reports(self._tasks()):
            if self._leaving.is_set():
                raise _Leaving
            if report is None:
                continue
            batch: Batch = report.task.content
            self._early[batch.round, batch.place] = report.result
            while self._turns and self._turns[0] in self._early:
                turn = self._turns.popleft()
                yield turn[0], self._early.pop(turn)

    def _tasks(self) -> Iterator[Task | None]:
        """The batches of the rounds that are asked for; None while there is no round, or no room."""
        while True:
            try:
                index = self._wanted.get_nowait()
            except queue.Empty:
                yield None
                continue
            for batch in self._store.batches(index):
                while sum(piece.n_bytes for piece in self._early.values()) > MOST_EARLY:
                    yield None
                self._turns.append((batch.round, batch.place))
                yield batch.task()
