"""A worker: a process that Ray starts somewhere, takes up a job, and does one task of it after the other.

Its class is found by name on every node, so that a node with another version of the package runs that one's. What is
asked first, `introduce`, has to stay as it is for good: it says which version that is.
"""

from __future__ import annotations

import os
import pickle
import platform
import threading
from typing import Any

from energy_lens.version import __version__


class Worker:
    """One process. `pulse` is answered while another call is under way, by a thread of its own."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._do: Any = None
        self._done = 0  #: units of all tasks so far
        self._lock = threading.Lock()

    def introduce(self) -> dict[str, str]:
        """Who and where this is."""
        return {"version": __version__, "host": platform.node(), "pid": str(os.getpid())}

    def prepare(self, job: bytes) -> dict[str, str]:
        """Take up a pickled job, or not where this machine has something else; returns the facts that differ."""
        # Set before torch and the tokenizers' library are loaded; Ray's own setting may be another.
        for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[name] = str(self._threads)
        self._limit_threads()
        unpickled = pickle.loads(job)  # of our own driver, by way of Ray, which pickles everything
        facts = unpickled.facts()
        others = {name: facts.get(name, "") for name, value in unpickled.expected.items() if facts.get(name) != value}
        if not others:
            self._do = unpickled.take_up()
        return others

    def work(self, content: Any) -> Any:
        """Do a task."""
        self._limit_threads()  # which is a thread's own setting, and Ray may call from another one
        return self._do(content, self._advance)

    def pulse(self) -> int:
        """Units done so far."""
        return self._done

    def _limit_threads(self) -> None:
        import torch

        torch.set_num_threads(self._threads)

    def _advance(self, units: int) -> None:
        with self._lock:
            self._done += units
