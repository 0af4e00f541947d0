"""What a run meets on this machine: versions, processor, memory, precision and compiler.

Libraries are imported where they are looked at: a broken one is to be found, not to end the doctor.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from energy_lens.analysis.doctor.finding import Finding, note, ok, problem, size
from energy_lens.version import __version__

#: Packages whose versions are shown; all that elw requires are looked at.
SHOWN = ("duckdb", "polars", "torch", "transformers")

#: Instruction sets that matter for a pass, as Linux spells them, on x86 and on ARM.
VECTORS = ("avx2", "avx512f", "asimd", "sve")
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")

#: Bytes of memory that a small model with its gradients, torch and DuckDB want beside other programs.
LITTLE_MEMORY = 4e9


def versions() -> Iterator[Finding]:
    """elw's version, Python's and those of what it stands on; what it requires and is not there is a problem."""
    shown = [f"{name} {_version(name) or 'missing'}" for name in SHOWN]
    yield ok("versions", f"elw {__version__}, Python {platform.python_version()}, {', '.join(shown)}")
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in metadata.requires("energy-lens") or []]
    except metadata.PackageNotFoundError:
        yield note("requirements", "elw is not installed as a package, so that what it requires is not known.")
        return
    wrong = []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version or 'missing'} where {requirement.specifier} is needed")
    if wrong:
        yield problem("requirements", "; ".join(wrong), "pip install --upgrade energy-lens")
    else:
        yield ok("requirements", f"all {len(required)} packages are there, in versions that will do")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> Iterator[Finding]:
    """Cores and threads, and the instruction sets that decide how long a pass takes."""
    import torch

    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_threads = torch.get_num_threads()
    said = f"{n_cores} {'processor' if n_cores == 1 else 'processors'}, {n_threads} of torch's threads"
    # With two hyperthreads a core torch takes one of them, which is as fast.
    if n_threads * 2 < n_cores:
        named = os.environ.get("OMP_NUM_THREADS")
        remedy = "unset OMP_NUM_THREADS" if named else f"export OMP_NUM_THREADS={n_cores}"
        yield note("processor", said + ": a pass uses less than half of the machine", remedy)
    else:
        yield ok("processor", said)
    flags = cpu_flags()
    vectors = [flag for flag in VECTORS if flag in flags]
    capability = torch.backends.cpu.get_cpu_capability()
    if vectors:
        yield ok("vectors", f"{', '.join(vectors)}; torch uses {capability}")
    elif flags:
        yield note("vectors", f"none of {', '.join(VECTORS)}; torch uses {capability}: passes are slow here")
    coarse = [flag for flag in BFLOAT16 if flag in flags]
    if coarse:
        yield ok("precision", f"{', '.join(coarse)}: --dtype auto, which times both, is likely to take bfloat16")
    elif flags:
        yield ok("precision", "no instructions for bfloat16: --dtype auto, which times both, is likely to take float32")


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the first processor as Linux lists them; empty where the system does not say."""
    try:
        listed = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(listed[1].split()) if listed else frozenset()


def memory() -> Iterator[Finding]:
    """Memory that is free for a run."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return
    if found is None:
        return
    free = int(found[1]) * 1024
    if free < LITTLE_MEMORY:
        yield note("memory", f"{size(free)} are free", "close other programs, or ingest with a smaller --batch-size")
    else:
        yield ok("memory", f"{size(free)} are free")


def compiler() -> Iterator[Finding]:
    """Whether a model's blocks can be fused, which needs a C++ compiler."""
    from energy_lens.ingest.model.compiling import WORTH_TOKENS, cpp_compiler

    found = cpp_compiler()
    if found is None:
        yield note(
            "compiler", f"no C++ compiler: ingests of more than {WORTH_TOKENS:,} tokens run as others do, unfused",
            "install g++ or clang++, or set CXX",
        )  # fmt: skip
    else:
        yield ok("compiler", f"{found}: --compile auto fuses blocks from {WORTH_TOKENS:,} tokens on")
