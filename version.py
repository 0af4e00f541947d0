"""The version of the package, where anything may read it without loading anything."""

from __future__ import annotations

__version__ = "0.1.0"
