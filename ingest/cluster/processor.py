"""What kind of processor this is: the same numbers come out of the same kind, and others within rounding."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """The name of this machine's processor and the instructions that torch uses of it, as in `EPYC 7B13, AVX2`."""
    import torch  # here: a worker introduces itself before it loads anything

    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{_name()}, {'AVX-512' if instructions == 'AVX512' else instructions}"


def _name() -> str:
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        facts = ""
    found = re.search(r"^(?:model name|Hardware|cpu model)\s*:\s*(.+)$", facts, re.MULTILINE)
    return " ".join((found[1] if found else platform.processor() or platform.machine() or "unknown").split())
