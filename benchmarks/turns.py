"""Commands in, the seconds that each phase of them takes out: side by side, but only one runs at a time.

Speed of a shared machine changes by half within minutes, so contenders that are timed one after the other are timed on
different machines. Here all of them are begun together, and each is stopped after some seconds while the next goes on:
whatever the machine does, it does to all. A command tells its phases by lines on stdout, `phase NAME`, and what it
found by a last line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Seconds of a turn: long beside the milliseconds in which caches fill again, short beside what the machine does.
TURN = 4.0

#: The phase of a command that has not told any yet.
BEGIN = "start-up"


@dataclass
class Timed:
    """What became of a command."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  #: by phase, its turns only
    found: dict[str, Any] = field(default_factory=dict)
    peak: float = 0.0  #: GB

    def of(self, *phases: str) -> float:
        return sum(self.seconds[phase] for phase in phases)


class _Command:
    """A process that runs only in its turns."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None) -> None:
        self.timed = Timed()
        self._phase = BEGIN
        self._begun = 0.0  # of the current turn, or the phase within it
        self._turns = threading.Lock()
        self._process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._said: list[str] = []
        self._os_stop()
        self._readers = [threading.Thread(target=reader, daemon=True) for reader in (self._listen, self._drain)]
        for reader in self._readers:
            reader.start()

    def run_for(self, seconds: float) -> bool:
        """Give it a turn; returns whether it goes on."""
        with self._turns:
            self._begun = time.perf_counter()
        os.kill(self._process.pid, signal.SIGCONT)
        end = time.perf_counter() + seconds
        ended = False
        while not ended and time.perf_counter() < end:
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            time.sleep(0.005)
        if not ended:
            self._os_stop()
        self._count(self._phase)
        if ended:
            self._end()
        return not ended

    def _os_stop(self) -> None:
        # Not send_signal, which takes note of a process that has ended: its peak memory would be lost.
        os.kill(self._process.pid, signal.SIGSTOP)

    def _count(self, next_phase: str) -> None:
        with self._turns:
            now = time.perf_counter()
            self.timed.seconds[self._phase] += now - self._begun
            self._begun, self._phase = now, next_phase

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("phase "):
                self._count(line.split(maxsplit=1)[1].strip())
            elif line.startswith("{"):
                self.timed.found = json.loads(line)

    def _drain(self) -> None:
        assert self._process.stderr is not None
        self._said = self._process.stderr.read().splitlines()

    def _end(self) -> None:
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        for reader in self._readers:
            reader.join()
        if self._process.returncode:
            raise RuntimeError("\n".join([f"{self._process.args} failed:", *self._said[-20:]]))
        self.timed.peak = usage.ru_maxrss / 2**20

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


def in_turns(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None) -> dict[str, Timed]:
    """Run commands to their ends, in turns. Raises RuntimeError when one fails; the others are then killed."""
    running = {name: _Command(arguments, environment) for name, arguments in commands.items()}
    everyone = dict(running)
    try:
        while running:
            for name, command in list(running.items()):
                if not command.run_for(TURN):
                    del running[name]
                    print(f"  {name}: done", file=sys.stderr, flush=True)
    finally:
        for command in everyone.values():
            command.kill()
    return {name: command.timed for name, command in everyone.items()}
