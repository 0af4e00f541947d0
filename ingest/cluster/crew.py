"""Tasks in, results out, in whatever order they are done: who has which task, who is silent, and what is lost.

Ray starts the processes where there is room, moves what they return, and knows when one has died. What is left to do
here: a worker has at most one task under way and one waiting, and none waiting near the end; results that nobody
fetched yet, and those to come, are limited in bytes; a task whose worker died or fell silent goes to another one; a
worker that died is started anew.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from energy_lens.console import say
from energy_lens.errors import ElwError, UsageError
from energy_lens.ingest.cluster.job import Job, Report, Task
from energy_lens.ingest.cluster.session import Connection
from energy_lens.ingest.cluster.worker import Worker
from energy_lens.version import __version__

#: Tasks that a worker has: one under way, and one that waits, so that it need not.
TASKS_OF_A_WORKER = 2

#: Seconds between two looks at everybody.
GLANCE = 0.5

#: Seconds between two questions for a worker's pulse, and after which one that does not answer is given up.
PULSE, PATIENCE = 2.0, 60.0

#: Seconds after which a worker that has not started is told of, and after which the work ends if none has.
LATE, NOBODY = 30.0, 300.0

#: Workers that a task may cost, and that may die in one place with nothing done, before it ends the work.
LIVES = 3

#: Bytes of a result for each unit of a task, before any is known; and the share of the cluster's store that is used.
FIRST_GUESS, SHARE_OF_STORE = 4_096, 0.5


@dataclass
class _Member:
    """A worker as the driver sees it."""

    number: int
    actor: Any
    starting: Any  #: the call that introduces or prepares it; None once it may be given tasks
    since: float  #: when that was asked
    where: str = ""  #: its host and process, once introduced
    tasks: dict[Any, Task] = field(default_factory=dict)  #: by the call that does it, the oldest first
    pulse: Any = None  #: the call that asks for it
    answered: float = 0.0  #: when it last did
    said: int = 0  #: units that it said it has done, of all its tasks
    fetched: int = 0  #: units of those of its tasks whose results were fetched
    is_late: bool = False
    has_paid: bool = False  #: a task of it was charged with its death

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.where}" if self.where else "")


class Crew:
    """Workers that take up a job. Leaving it ends them."""

    def __init__(
        self,
        connection: Connection,
        job: Job,
        patience: float = PATIENCE,
        nobody: float = NOBODY,
        remedy: str = "run the command again",
    ) -> None:
        """patience: seconds that a worker may be silent. nobody: seconds for which none may have started.

        remedy: what helps where a task ends one worker after the other.
        """
        self._ray, self._threads = connection.ray, connection.cluster.threads
        self._connection, self._job = connection, job
        self._patience, self._nobody, self._remedy = patience, nobody, remedy
        self._coming: Iterator[Task | None] = iter(())
        self._is_over = False  # whether it has come to its end
        self._waiting: deque[Task] = deque()  # of those that were taken from it, or came back
        self._members: list[_Member] = []
        self._done: deque[tuple[Any, Task, _Member]] = deque()  # that nobody fetched yet
        self._bytes_of_unit = float(FIRST_GUESS)
        self._lives_of_task: Counter[str] = Counter()
        self._deaths: Counter[int] = Counter()  # of members that had done nothing
        self._refusals: list[str] = []
        self._units = 0
        self._looked = 0.0

    def __enter__(self) -> Crew:
        workers, threads = self._connection.workers, self._threads
        say(f"Starting {workers} worker{'s' * (workers != 1)} of {threads} thread{'s' * (threads != 1)} …")
        self._room = SHARE_OF_STORE * self._ray.cluster_resources().get("object_store_memory", 0)
        self._payload = self._ray.put(self._ray.cloudpickle.dumps(self._job))  # a class of a script's own too
        self._members = [self._hired(number) for number in range(1, workers + 1)]
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for member in self._members:
            self._dismiss(member)
        self._members.clear()

    @property
    def units(self) -> int:
        """Units done so far, those of tasks under way with them, as far as workers have said."""
        return self._units + sum(max(0, member.said - member.fetched) for member in self._members)

    def give(self, task: Task) -> None:
        """Have a task done, before those that wait."""
        self._waiting.appendleft(task)

    def reports(self, tasks: Iterable[Task | None]) -> Iterator[Report | None]:
        """What each task came to, as soon as it is known; None now and then, so that a bar can be moved.

        tasks: asked for when somebody has room, at most one for each worker ahead of that; None where the next one is
        still to come.

        Raises what a worker's task raised, UsageError where every worker is refused, and ElwError for a task that ends
        its workers.
        """
        self._coming, self._is_over = iter(tasks), False
        self._looked = time.monotonic()
        while self._next_one() or not self._is_over or self._done or any(member.tasks for member in self._members):
            self._hand_out()
            self._look()
            if not self._done:
                yield None
            while self._done:
                call, task, member = self._done.popleft()
                result = self._fetched(call, task, member)
                del call  # the last reference: the store may give its room back
                if result is not None:
                    yield Report(task, result[0], str(member))

    # -------------------------------------------------------------------------------------------- giving work

    def _hired(self, number: int) -> _Member:
        options: dict[str, Any] = {
            "num_cpus": self._threads, "concurrency_groups": {"pulse": 1}, "max_restarts": 0,
        }  # fmt: skip
        if self._connection.worker_bytes and not self._connection.cluster.is_local:
            options["memory"] = self._connection.worker_bytes
        actor = self._ray.remote(**options)(Worker).remote(self._threads)
        return _Member(number, actor, actor.introduce.remote(), time.monotonic())

    def _dismiss(self, member: _Member) -> None:
        self._ray.kill(member.actor, no_restart=True)

    def _hand_out(self) -> None:
        """Give waiting tasks to whoever has room, who has nothing to do first."""
        ready = [member for member in self._members if member.starting is None]
        for n_has in range(TASKS_OF_A_WORKER):
            for member in ready:
                if len(member.tasks) == n_has:
                    if n_has and not self._has_plenty():
                        return
                    task = self._next_one()
                    if task is None or not self._has_room(task):
                        return
                    self._waiting.popleft()
                    member.tasks[member.actor.work.remote(task.content)] = task

    def _has_plenty(self) -> bool:
        """Whether a task may wait at a worker: there is one for each besides, who may still be starting.

        Otherwise the first worker to be ready takes two of two, and near the end one waits for two while others idle.
        """
        while not self._is_over and len(self._waiting) <= len(self._members):
            if not self._took_one() and not self._is_over:  # more are to come, and nobody knows how many
                return True
        return len(self._waiting) > len(self._members)

    def _next_one(self) -> Task | None:
        """The task that is to be given next, which stays waiting; None where there is none, or none yet."""
        if not self._waiting:
            self._took_one()
        return self._waiting[0] if self._waiting else None

    def _took_one(self) -> bool:
        """Whether the source had a task, which waits now; if not, it is over or the next one is still to come."""
        for came in self._coming:
            if came is not None:
                self._waiting.append(came)
            return came is not None
        self._is_over = True
        return False

    def _has_room(self, task: Task) -> bool:
        """Whether the result of one more task finds room beside those that are to come."""
        sizes = [task.size for member in self._members for task in member.tasks.values()]
        sizes += [done.size for _, done, _ in self._done]
        return not sizes or (sum(sizes) + task.size) * self._bytes_of_unit <= self._room

    # -------------------------------------------------------------------------------------------- looking

    def _look(self) -> None:
        """Wait a moment for whatever comes first, take note of it, and of who has been silent for long."""
        now = time.monotonic()
        if now - self._looked > 2 * GLANCE:  # whoever takes our results was at work meanwhile: nobody was listening
            for member in self._members:
                member.answered += now - self._looked
                member.since += now - self._looked
        self._ask_for_pulses(now)
        calls: dict[Any, _Member] = {}
        for member in self._members:
            calls |= dict.fromkeys([*member.tasks], member)
            calls |= {call: member for call in (member.starting, member.pulse) if call is not None}
        if not self._members:
            raise self._nobody_left()
        for call in self._came(list(calls)):
            member = calls[call]
            if member not in self._members:  # it was found dead a moment ago
                continue
            if call in member.tasks:
                self._done.append((call, member.tasks.pop(call), member))
            elif call is member.pulse:
                self._take_pulse(member)
            elif call is member.starting:
                self._go_on_starting(member)
        self._looked = time.monotonic()
        self._find_silent(self._looked)

    def _came(self, calls: list[Any]) -> list[Any]:
        """Those that are answered, after a moment where none is yet."""
        if not calls:  # everybody waits for tasks that are still to come
            time.sleep(GLANCE)
            return []
        came, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0, fetch_local=False)
        if not came:
            came, _ = self._ray.wait(calls, num_returns=1, timeout=GLANCE, fetch_local=False)
        return list(came)

    def _ask_for_pulses(self, now: float) -> None:
        for member in self._members:
            if member.where and member.pulse is None and now - member.answered > PULSE:
                member.pulse = member.actor.pulse.options(concurrency_group="pulse").remote()

    def _take_pulse(self, member: _Member) -> None:
        call, member.pulse = member.pulse, None
        try:
            member.said, member.answered = self._ray.get(call), time.monotonic()
        except self._ray.exceptions.RayError as error:
            self._replace(member, _reason(error))

    def _go_on_starting(self, member: _Member) -> None:
        """A worker has introduced itself, or has taken up the job, or could not."""
        try:
            answer = self._ray.get(member.starting)
        except self._ray.exceptions.RayTaskError as error:
            raise _of_task(error, f"{member} could not take up its work") from error
        except self._ray.exceptions.RayError as error:
            if "ModuleNotFoundError" in str(error):
                member.where = member.where or "a node"
                self._refuse(member, "has no energy_lens: install the same version there")
            else:
                self._replace(member, _reason(error))
            return
        member.since = member.answered = time.monotonic()
        if not member.where:
            member.where = f"{answer['host']} (process {answer['pid']})"
            if answer["version"] != __version__:
                self._refuse(member, f"has version {answer['version']} of elw and not {__version__}")
                return
            member.starting = member.actor.prepare.remote(self._payload)
        elif answer:
            expected = self._job.expected
            what = "; ".join(f"{name} {value or 'none'} and not {expected[name]}" for name, value in answer.items())
            self._refuse(member, f"has {what}")
        else:
            member.starting = None

    def _find_silent(self, now: float) -> None:
        for member in list(self._members):
            if member.where and now - member.answered > self._patience:
                self._replace(member, f"it has not answered for {self._patience:.0f} s")
            elif not member.where and now - member.since > LATE and not member.is_late:
                member.is_late = True
                say(f"{str(member).capitalize()} waits for a processor that is free, or a node that answers.")
        waits = [now - member.since for member in self._members if not member.where]
        if waits and len(waits) == len(self._members) and max(waits) > self._nobody:
            raise ElwError(
                f"No worker has started for {self._nobody:.0f} s: ray status tells whether the cluster's nodes answer "
                "and have processors that are free."
            )

    # -------------------------------------------------------------------------------------------- losing

    def _fetched(self, call: Any, task: Task, member: _Member) -> tuple[Any] | None:
        """The result of a task that is done, alone in a tuple; None where it was lost, and the task waits again."""
        try:
            result = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            raise _of_task(error, f"{task.name} failed on {member}") from error
        except self._ray.exceptions.RayError as error:
            if not isinstance(error, self._ray.exceptions.RayActorError):
                self._lost(task, _reason(error))
            elif member in self._members:
                member.tasks = {call: task} | member.tasks
                self._replace(member, _reason(error))
            else:  # another of its tasks has told of its death
                self._give_back(member, [task], _reason(error))
            return None
        n_bytes = getattr(result, "n_bytes", 0)
        self._bytes_of_unit = max(self._bytes_of_unit, n_bytes / task.size) if self._units else n_bytes / task.size
        self._deaths[member.number] = 0
        self._units += task.size
        member.fetched += task.size
        return (result,)

    def _lost(self, task: Task, reason: str) -> None:
        """A task's worker or result is gone: it waits again."""
        self._lives_of_task[task.name] += 1
        if self._lives_of_task[task.name] >= LIVES:
            raise ElwError(f"{task.name} was lost {LIVES} times, the last time because {reason}: {self._remedy}.")
        self._waiting.appendleft(task)

    def _give_back(self, member: _Member, tasks: list[Task], reason: str) -> None:
        """Tasks of a worker that is gone wait again. The first of all was under way and pays; others were not begun."""
        n_paying = 0 if member.has_paid else 1
        member.has_paid = member.has_paid or bool(tasks)
        self._waiting.extendleft(reversed(tasks[n_paying:]))
        for under_way in tasks[:n_paying]:
            self._lost(under_way, reason)

    def _replace(self, member: _Member, reason: str) -> None:
        """A worker is dead or silent: its tasks wait again, and another one is started in its place."""
        say(f"{str(member).capitalize()} is lost ({reason}); its work is done again.")
        self._members.remove(member)
        self._dismiss(member)
        self._give_back(member, [*member.tasks.values()], reason)
        self._deaths[member.number] += 1
        if self._deaths[member.number] < LIVES:
            self._members.append(self._hired(member.number))
        else:
            self._refusals.append(f"{member} was lost {LIVES} times with nothing done, the last time because {reason}")
            if not self._members:
                raise self._nobody_left()

    def _refuse(self, member: _Member, what: str) -> None:
        """A worker is on a machine that would come to other numbers: nothing is given to it."""
        sentence = f"{str(member).capitalize()} is not worked with: it {what}."
        self._refusals.append(sentence)
        say(sentence)
        self._members.remove(member)
        self._dismiss(member)
        if not self._members:
            raise self._nobody_left()

    def _nobody_left(self) -> ElwError:
        last = self._refusals[-1].rstrip(".") if self._refusals else "none has started"
        return UsageError(f"No worker is left to work with: {last}.")


def _reason(error: Exception) -> str:
    """The first line of what Ray says, which goes on for many."""
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:160].rstrip(".")


def _of_task(error: Any, what: str) -> ElwError:
    """What a task raised, as the same kind of error with the same sentence where it is one of ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ElwError):
        return cause
    said = f"{type(cause).__name__}: {cause}" if cause is not None else _reason(error)
    return ElwError(f"{what} ({' '.join(said.split())[:200]}).")
