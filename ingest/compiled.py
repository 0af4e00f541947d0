"""A Python function of arrays in, the same as machine code out: for loops of which numpy would make a dozen passes.

numba compiles on first use and keeps the result on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays as machine code that lets other threads run."""
    try:
        kernel: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # nothing may be written beside its file, nor at the user's home
        kernel = numba.njit(nogil=True)(function)
    return kernel
